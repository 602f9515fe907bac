"""Start a run from trained weights (`--pretrained`): settings it inherits, tensors it loads."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from grain_jax.config import TrainConfig
from grain_jax.config.bounds import leaves
from grain_jax.config.cli import config_from_json
from grain_jax.config.migration import migrate_one
from grain_jax.data.tokenizer import Tokenizer, build_tokenizer, tokenizer_from_spec
from grain_jax.formats.grain_reference import stack_layers, unstack_layers
from grain_jax.loading.load import read_model
from grain_jax.models.bundle import ModelBundle
from grain_jax.paths import AnyPath
from grain_jax.training import run_folder
from grain_jax.training.state import TrainState

NOT_INHERITED = (  # how a tower is initialized or trained, which weights do not decide
    "model.vision.position_init",
    "model.vision.initializer",
    "model.text.token_init_std",
    "model.decoder.dropout",
)
OVERRIDABLE = (  # inherited unless set by the user
    "model.max_logit_scale",
    "model.region_logit_scale",
    "data.interpolation",
)
LENGTHS = ("data.caption_length", "data.description_length")
POSITION = "vision/position"
SCALE, BIAS, REGION_SCALE = "logit_scale", "logit_bias", "region_logit_scale"


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded, by parameter name ("vision/layer_0/norm1/scale").

    `missing` and `unexpected` mean what they mean in `transformers`.
    """

    loaded: tuple[str, ...]  # the resized ones included
    resized: tuple[str, ...]  # position embeddings interpolated to another image size
    missing: tuple[str, ...]  # in the model, not in the weights: newly initialized
    unexpected: tuple[str, ...]  # in the weights, and not used
    copied: Mapping[str, str] = field(default_factory=dict)  # {name: its name in the weights}

    def sentences(self, source: str) -> list[str]:
        """Lines to print, one for each kind of tensor that occurs; `source` names the weights."""
        lines = [f"{len(self.loaded)} tensors of {source} loaded"]
        lines += [f"{name} starts from {given} of {source}" for name, given in self.copied.items()]
        if SCALE in self.missing and SCALE in (*self.unexpected, *self.copied.values()):
            lines.append(
                f"{SCALE} starts anew: that of {source} was learned by the other "
                "loss.image_caption, and that of a sigmoid is not the inverse of a temperature"
            )
        for what, names in (
            ("resized to the model's image size", self.resized),
            ("missing from the weights, newly initialized", self.missing),
            ("unexpected in the weights, ignored", self.unexpected),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_summary(names)}")
        return lines


@dataclass(frozen=True)
class Pretrained:
    """The trained weights that a run starts from, and the settings it inherits from them."""

    config: TrainConfig  # with the inherited settings
    trained: ModelBundle | None = None  # None for random initialization and for a resumed run
    tokenizer: Tokenizer | None = None  # of the weights; None: the one that the config names
    inherited: Sequence[str] = ()  # paths of the inherited settings
    notes: Sequence[str] = ()  # to print


def pretrained(config: TrainConfig, workdir: AnyPath) -> Pretrained:
    """Reads the weights that `config.pretrained` names and lets `config` inherit their settings.

    A run in `workdir` that has a checkpoint resumes from it: the inherited settings are read from
    the checkpoint, and the pretrained weights are not read again. Raises ValueError where the
    weights do not exist or do not fit the settings.
    """
    folder = workdir / run_folder.FOLDER
    steps = run_folder.complete_steps(folder)
    if not config.pretrained and not steps:
        return Pretrained(config)
    if steps:
        saved = run_folder.read_metadata(folder, steps[-1])
        before = config_from_json(json.dumps(saved["config"]))
        if not config.pretrained:
            # Keep the stored tokenizer: an older version may have cleaned texts differently.
            same = not before.pretrained and _same_tokenizer(config, before)
            own = tokenizer_from_spec(saved["tokenizer"]) if same else None
            return Pretrained(config, tokenizer=own)
        if before.pretrained != config.pretrained:
            return Pretrained(config)  # refused later, together with the other changed settings
        # Runs made before version 0.2 call it "adopted".
        inherited = saved.get("inherited_settings", saved.get("adopted", ()))
        config = restore_inherited(config, before, inherited)
        return Pretrained(
            config, tokenizer=tokenizer_from_spec(saved["tokenizer"]), inherited=inherited
        )
    trained = read_model(config.pretrained)
    config, inherited_notes = inherit_settings(config, trained.config)
    notes = list(inherited_notes.values())
    if config.data.resize != (resize := trained.config.data.resize):
        notes.append(
            f"data.resize = {config.data.resize!r}, and the weights were trained with {resize!r}; "
            "this setting is not inherited, because a crop cuts off regions"
        )
    if config.data.tokenizer == "synthetic_birds":
        own = build_tokenizer(config.data)
        if own.spec() != trained.tokenizer.spec():
            notes.append(
                "the vocabulary is that of the weights, trained on another synthetic birds data "
                "set: words it lacks become the unknown token"
            )
    return Pretrained(config, trained, trained.tokenizer, tuple(inherited_notes), notes)


def _same_tokenizer(config: TrainConfig, before: TrainConfig) -> bool:
    """Whether a run keeps its stored tokenizer; that of synthetic birds is built from settings."""
    names = (config.data.tokenizer, before.data.tokenizer)
    pooling = (config.model.text.pooling, before.model.text.pooling)
    return len(set(names)) == len(set(pooling)) == 1 and "synthetic_birds" not in names


def inherit_settings(
    config: TrainConfig, trained: TrainConfig
) -> tuple[TrainConfig, dict[str, str]]:
    """`config` with the settings of the weights, and {path: note} for each setting that changed.

    A setting of the towers, the embedding, the tokenizer, or the interpolation and normalisation
    of pixels takes the value of the weights if it is at its default. `config` is not modified.
    Raises ValueError where such a setting was set to another value, except for those in
    `OVERRIDABLE`, which keep the value that was set.
    """
    config = copy.deepcopy(config)
    wanted: dict[str, Any] = leaves(config)
    default = leaves(TrainConfig())
    notes: dict[str, str] = {}
    wrong = []
    for path, (value, _) in leaves(trained).items():
        given = wanted[path][0]
        if not _is_inherited(path, config, trained) or given == value:
            continue
        if given == default[path][0]:
            _assign(config, path, value)
            notes[path] = f"{path} = {value!r}, inherited from the weights"
        elif path not in OVERRIDABLE:
            wrong.append(f"{path}: given {given!r}, the weights have {value!r}")
    if wrong:
        raise ValueError(
            f"The weights of pretrained = {config.pretrained!r} do not fit these settings; leave "
            "the settings out, and they are inherited from the weights:\n  " + "\n  ".join(wrong)
        )
    # A text is never longer than its positions.
    limit = config.model.text.context_length
    for path in LENGTHS:
        given = wanted[path][0]
        length = limit if config.model.text.pooling == "last" else min(limit, given)
        if length != given:
            _assign(config, path, length)
            notes[path] = f"{path} = {length}, the number of text positions of the weights"
    return config, notes


def restore_inherited(
    config: TrainConfig, before: TrainConfig, inherited: Sequence[str]
) -> TrainConfig:
    """`config` with the settings that a run `inherited` at its start, to resume that run.

    A setting at its default takes its value in `before`, the stored config of the run; one that
    was set since keeps the value that was set.
    """
    config = copy.deepcopy(config)
    saved: dict[str, Any] = leaves(before)
    wanted: dict[str, Any] = leaves(config)
    default = leaves(TrainConfig())
    for path in dict.fromkeys(migrate_one(path, None)[0] for path in inherited):
        given, value = wanted[path][0], saved[path][0]
        fills_positions = before.model.text.pooling == "last"  # every text is that long
        determined = path in LENGTHS and (fills_positions or given > value)
        if given == default[path][0] or determined:
            _assign(config, path, value)
    return config


def start_from(
    trained: ModelBundle, state: TrainState, config: TrainConfig
) -> tuple[TrainState, LoadReport]:
    """`state` with every tensor of `trained` that the model has, and the report of what was loaded.

    The scale of a softmax is not loaded where the model learns one with a bias: cosines times 100
    minus 10 would take every pair for a positive. Neither is a sigmoid's loaded as that of a
    softmax, which is the inverse of a temperature. The report has either as missing. A scale of
    regions that the weights lack starts from the one that regions share with images there, where
    the weights are of this model.type and trained with a softmax.

    Position embeddings are resized for another image size (bicubic, as CLIP and timm do). Raises
    ValueError where a tensor has another shape.
    """
    weights = unstack_layers(jax.tree.map(np.asarray, trained.params))
    given = _flat(stack_layers(weights) if config.model.scan_layers else weights)
    wanted = _flat(state.params)
    sigmoid_weights = BIAS in given
    of_other_loss = {SCALE} if (BIAS in wanted) != sigmoid_weights else set[str]()
    ignored = set(given) - set(wanted) | of_other_loss & set(given)
    shared = not sigmoid_weights and REGION_SCALE not in given and SCALE in given
    copied = {}
    if shared and REGION_SCALE in wanted and trained.config.model.type == config.model.type:
        copied[REGION_SCALE] = SCALE
    values = {name: given[source] for name, source in copied.items()}
    given = {name: value for name, value in given.items() if name not in ignored} | values
    params, resized, wrong = dict(wanted), [], []
    for name in sorted(given):
        value, leaf = given[name].astype(np.float32), wanted[name]
        shape = leaf.shape
        if name == POSITION and value.shape != shape and value.shape[1:] == shape[1:]:
            value = resize_positions(value, shape[0])
            resized.append(name)
        if value.shape != shape:
            wrong.append(f"{name}: {value.shape}, expected {shape}")
            continue
        params[name] = jax.make_array_from_callback(shape, leaf.sharding, value.__getitem__)
    if wrong:
        raise ValueError(
            f"The weights of pretrained = {config.pretrained!r} have tensors of other shapes:\n  "
            + "\n  ".join(wrong)
        )
    report = LoadReport(
        loaded=tuple(sorted(given)),
        resized=tuple(resized),
        missing=tuple(sorted(set(wanted) - set(given))),
        unexpected=tuple(sorted(ignored - set(copied.values()))),
        copied=copied,
    )
    tree = flax.traverse_util.unflatten_dict(params, sep="/")
    average = None if state.ema_params is None else jax.tree.map(jnp.copy, tree)
    return dataclasses.replace(state, params=tree, ema_params=average), report


def resize_positions(table: Float[np.ndarray, "P D"], rows: int) -> Float[np.ndarray, "P2 D"]:
    """Position embeddings of a square grid, interpolated (bicubic) to `rows` rows.

    A CLS row, if there is one, comes first and is kept. Raises ValueError where `table` or the
    result is not a square grid with the same number (0 or 1) of CLS rows.
    """
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


def _is_inherited(path: str, config: TrainConfig, trained: TrainConfig) -> bool:
    if path in NOT_INHERITED:
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
    """The names counted by their first part: "decoder (64), logit_scale"."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition("/")[0]
        counts[part] = counts.get(part, 0) + 1
    single = {name.partition("/")[0]: name for name in names}
    return ", ".join(
        f"{part} ({count})" if count > 1 else single[part] for part, count in counts.items()
    )
