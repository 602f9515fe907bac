"""A run that starts from trained weights (`--pretrained`): what comes with them, what does not."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from grain_jax.config import TrainConfig
from grain_jax.config.cli import config_from_json
from grain_jax.config.migration import migrate_one
from grain_jax.config.validation import leaves
from grain_jax.data.tokenizer import Tokenizer, build_tokenizer, tokenizer_from_spec
from grain_jax.formats.grain_reference import stack_layers, unstack_layers
from grain_jax.loading.load import read_model
from grain_jax.models.bundle import ModelBundle
from grain_jax.training import run_folder
from grain_jax.training.state import TrainState

NOT_OF_WEIGHTS = (  # how a tower starts, or trains: nothing the weights decide
    "model.vision.position_init",
    "model.vision.initializer",
    "model.text.token_init_std",
    "model.decoder.dropout",
)
FREE = ("model.max_logit_scale", "data.interpolation")  # the weights' own unless one is given
LENGTHS = ("data.caption_length", "data.description_length")
POSITION = "vision/position"


@dataclass(frozen=True)
class Origin:
    """Where the parameters of a run come from, by name ("vision/layer_0/norm1/scale")."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]  # loaded, for another image size
    new: tuple[str, ...]
    left: tuple[str, ...]  # of the weights, that the model has no place for

    def sentences(self, source: str) -> list[str]:
        """For the screen: one line each for what was loaded, resized, made new and left."""
        lines = [f"{len(self.loaded)} tensors of {source} loaded"]
        for what, names in (
            ("resized to the model's image size", self.resized),
            ("newly made", self.new),
            ("of the weights left, as the model has no such part", self.left),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_summary(names)}")
        return lines


@dataclass(frozen=True)
class Pretrained:
    """The trained weights that a run starts from, and what comes with them."""

    config: TrainConfig
    trained: ModelBundle | None = None  # None from the seed, or for a run that goes on
    tokenizer: Tokenizer | None = None  # of the weights; None: the one that the config names
    adopted: Sequence[str] = ()  # settings that came with the weights
    notes: Sequence[str] = ()  # for the screen


def pretrained(config: TrainConfig, workdir: Path) -> Pretrained:
    """What `config.pretrained` names, for a run in `workdir`, and `config` with what comes with it.

    A run that has a checkpoint is past its start: what came along is in there, and the weights need
    not be there any more. Raises ValueError for weights that do not fit the settings.
    """
    folder = workdir / run_folder.FOLDER
    steps = run_folder.complete_steps(folder)
    if not config.pretrained and not steps:
        return Pretrained(config)
    if steps:
        saved = run_folder.read_metadata(folder, steps[-1])
        before = config_from_json(json.dumps(saved["config"]))
        if not config.pretrained:
            # The tokenizer that it has: an older version may have cleaned texts in another way.
            same = not before.pretrained and _same_tokenizer(config, before)
            own = tokenizer_from_spec(saved["tokenizer"]) if same else None
            return Pretrained(config, tokenizer=own)
        if before.pretrained != config.pretrained:
            return Pretrained(config)  # which is refused, with all else that changed
        adopted = saved.get("adopted", ())
        config = adopt_again(config, before, adopted)
        return Pretrained(
            config, tokenizer=tokenizer_from_spec(saved["tokenizer"]), adopted=adopted
        )
    trained = read_model(config.pretrained)
    config, came_along = adopt(config, trained.config)
    notes = list(came_along.values())
    if config.data.resize != (resize := trained.config.data.resize):
        notes.append(
            f"data.resize = {config.data.resize!r}, and the weights saw images as {resize!r}; a "
            "crop cuts off regions, so this is not taken from them"
        )
    if config.data.tokenizer == "synthetic_birds":
        own = build_tokenizer(config.data)
        if own.spec() != trained.tokenizer.spec():
            notes.append(
                "the words are those of the weights, another world's: what it has not is unknown"
            )
    return Pretrained(config, trained, trained.tokenizer, tuple(came_along), notes)


def _same_tokenizer(config: TrainConfig, before: TrainConfig) -> bool:
    """Whether a run keeps the tokenizer it has; the world's follows from its settings."""
    names = (config.data.tokenizer, before.data.tokenizer)
    pooling = (config.model.text.pooling, before.model.text.pooling)
    return len(set(names)) == len(set(pooling)) == 1 and "synthetic_birds" not in names


def adopt(config: TrainConfig, trained: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """`config` with what comes with the weights, and a sentence for each setting that changed.

    Of the towers, the embedding, the tokenizer, the interpolation and normalisation of pixels, a
    setting that is at its default takes the weights' value. Raises ValueError where one was set to
    another value, but for those in `FREE`, which are kept.
    """
    config = copy.deepcopy(config)
    wanted: dict[str, Any] = leaves(config)
    default = leaves(TrainConfig())
    notes: dict[str, str] = {}
    wrong = []
    for path, (value, _) in leaves(trained).items():
        given = wanted[path][0]
        if not _comes_along(path, config, trained) or given == value:
            continue
        if given == default[path][0]:
            _assign(config, path, value)
            notes[path] = f"{path} = {value!r}, as the weights have it"
        elif path not in FREE:
            wrong.append(f"{path}: given {given!r}, the weights have {value!r}")
    if wrong:
        raise ValueError(
            f"The weights of pretrained = {config.pretrained!r} do not fit these settings; leave "
            "them out, and they come with the weights:\n  " + "\n  ".join(wrong)
        )
    # A text is never longer than its positions.
    limit = config.model.text.context_length
    for path in LENGTHS:
        given = wanted[path][0]
        length = limit if config.model.text.pooling == "last" else min(limit, given)
        if length != given:
            _assign(config, path, length)
            notes[path] = f"{path} = {length}, as the weights have so many positions"
    return config, notes


def adopt_again(config: TrainConfig, before: TrainConfig, adopted: Sequence[str]) -> TrainConfig:
    """`config` with the settings that a run `adopted` at its start, for going on with it.

    One that is at its default is as it was `before`; one that was set since stays as it is given.
    """
    config = copy.deepcopy(config)
    saved: dict[str, Any] = leaves(before)
    wanted: dict[str, Any] = leaves(config)
    default = leaves(TrainConfig())
    for path in dict.fromkeys(migrate_one(path, None)[0] for path in adopted):
        given, value = wanted[path][0], saved[path][0]
        whole = before.model.text.pooling == "last"  # texts are as long as the positions
        ruled = path in LENGTHS and (whole or given > value)
        if given == default[path][0] or ruled:
            _assign(config, path, value)
    return config


def start_from(
    trained: ModelBundle, state: TrainState, config: TrainConfig
) -> tuple[TrainState, Origin]:
    """`state` with the weights of `trained` wherever the model has a place for them.

    Position embeddings are resized for another image size (bicubic, as CLIP and timm do). Raises
    ValueError for a tensor of another shape.
    """
    weights = unstack_layers(jax.tree.map(np.asarray, trained.params))
    given = _flat(stack_layers(weights) if config.model.scan_layers else weights)
    wanted = _flat(state.params)
    params, resized, wrong = dict(wanted), [], []
    for name in sorted(set(given) & set(wanted)):
        value, leaf = given[name].astype(np.float32), wanted[name]
        shape = leaf.shape
        if name == POSITION and value.shape != shape and value.shape[1:] == shape[1:]:
            value = resize_positions(value, shape[0])
            resized.append(name)
        if value.shape != shape:
            wrong.append(f"{name}: {value.shape}, needed {shape}")
            continue
        params[name] = jax.make_array_from_callback(shape, leaf.sharding, value.__getitem__)
    if wrong:
        raise ValueError(
            f"The weights of pretrained = {config.pretrained!r} have tensors of other shapes:\n  "
            + "\n  ".join(wrong)
        )
    origin = Origin(
        loaded=tuple(sorted(set(given) & set(wanted))),
        resized=tuple(resized),
        new=tuple(sorted(set(wanted) - set(given))),
        left=tuple(sorted(set(given) - set(wanted))),
    )
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    average = None if state.ema_params is None else jax.tree.map(jnp.copy, tree)
    return dataclasses.replace(state, params=tree, ema_params=average), origin


def resize_positions(table: Float[np.ndarray, "P D"], rows: int) -> Float[np.ndarray, "P2 D"]:
    """Learned positions of a square grid, with or without a CLS row first, for `rows` rows."""
    side, new_side = int(len(table) ** 0.5), int(rows**0.5)
    cls, new_cls = len(table) - side**2, rows - new_side**2
    if cls != new_cls or cls > 1:
        raise ValueError(
            f"Positions of {len(table)} and of {rows} tokens are not both a square grid, with or "
            "without one class token."
        )
    grid = table[cls:].reshape(side, side, -1)
    shape = (new_side, new_side, grid.shape[-1])
    resized = np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))
    return np.concatenate([table[:cls], resized.reshape(new_side**2, -1)])


def _comes_along(path: str, config: TrainConfig, trained: TrainConfig) -> bool:
    if path in NOT_OF_WEIGHTS:
        return False
    if path.startswith("model.decoder.") or path == "model.region_logit_scale":
        return config.model.type == trained.model.type == "grain"
    of_towers = path.startswith(("model.vision.", "model.text."))
    return of_towers or path in (
        "model.embed_dim",
        "model.max_logit_scale",
        *("data.tokenizer", "data.interpolation", "data.mean", "data.std"),
    )


def _assign(config: Any, path: str, value: object) -> None:
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)


def _flat(params: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep="/")


def _summary(names: tuple[str, ...]) -> str:
    """The parts that the names belong to, with how many each has: "decoder (64), logit_scale"."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition("/")[0]
        counts[part] = counts.get(part, 0) + 1
    single = {name.partition("/")[0]: name for name in names}
    return ", ".join(
        f"{part} ({count})" if count > 1 else single[part] for part, count in counts.items()
    )
