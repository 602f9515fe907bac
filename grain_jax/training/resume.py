"""Which settings may change when a run goes on."""

import json
import math
from typing import Any

from grain_jax.config import TrainConfig
from grain_jax.config.cli import config_from_json, differences
from grain_jax.data.mixture import Mixture, source_marks, source_sizes
from grain_jax.data.records import Source
from grain_jax.paths import AnyPath
from grain_jax.training.optimizer import learning_rate, num_steps, num_warmup_steps

RATE_JUMP = 2.0  # times the learning rate: more than this at once undoes what a schedule has done

FIXED = (
    "seed",
    "pretrained",
    "batch_size",
    "loss.image_caption",  # the sigmoid has a bias
    "model.",
    "data.",
)  # they decide on the weights or the batches
FREE = (  # of the above: the same model and batches, computed or loaded in another way
    *("model.dtype", "model.gradient_dtype", "model.remat", "model.attention"),
    "model.text_tokens_per_image",
    "data.mixture",  # folders may have moved, and weights mean the batches from the step on
    *("data.data_dir", "data.num_workers", "data.num_threads", "data.prefetch_batches"),
    *("data.cache", "data.eval_split", "data.synthetic_birds.num_eval_images"),
)


def check_same_data(saved: dict[str, Any], source: Source, workdir: AnyPath) -> None:
    """Raises ValueError where `source` has other images than the run's, or in another order.

    As far as numbers of images and a few ids tell, of each set of `data.mixture`. Its weights may
    change.
    """
    set_sizes = source_sizes(source)
    # Absent: from before there were several.
    trained_sizes = saved["set_sizes"] if "set_sizes" in saved else [saved["num_images"]]
    if trained_sizes != set_sizes:
        was, now = (" + ".join(map(str, sizes)) for sizes in (trained_sizes, set_sizes))
        raise ValueError(
            f"{workdir} was trained on {was} images and the data set now has "
            f"{now}, which changes the order of all of them. Give the same data, or start a "
            "new run with another --workdir."
        )
    marks = source_marks(source)
    before = saved.get("set_marks", marks)  # absent: from versions before
    if before != marks:
        number = [old == new for old, new in zip(before, marks, strict=True)].index(False)
        what = "the data set"
        if isinstance(source, Mixture):
            what = f"{source.names[number]}, entry {number + 1} of data.mixture,"
        raise ValueError(
            f"{what} has other images than {workdir} was trained on, or the same in another order: "
            "the ids of the first, middle and last differ. Give the same data, the sets of "
            "data.mixture in the same order, or start a new run with another --workdir."
        )


EFFECTS = {  # what a change does that is not the setting's alone
    "optim.moments_dtype": "to which the stored moments are converted",
    "model.text_tokens_per_image": "and texts that do not fit into it are cut",
}


def changed_settings(saved: dict[str, object], config: TrainConfig, workdir: AnyPath) -> list[str]:
    """What differs from the configuration stored with a checkpoint, as sentences to show.

    Raises ValueError for a change that the saved weights or the order of the data do not survive.
    """
    changed = differences(config_from_json(json.dumps(saved)), config)
    averaging = bool(config.optim.ema_decay)
    forbidden = [path for path in changed if path.startswith(FIXED) and path not in FREE]
    if "optim.ema_decay" in changed and averaging != bool(changed["optim.ema_decay"][0]):
        forbidden.append("optim.ema_decay")
    if forbidden:
        listed = "; ".join(
            f"{path}: {changed[path][0]} -> {changed[path][1]}" for path in forbidden
        )
        raise ValueError(
            f"{workdir} holds a run with other settings ({listed}), whose checkpoint does not fit "
            "these. Set them back to resume it, or start a new run with another --workdir."
        )
    return [
        f"{path}: {old} -> {new}{f', {EFFECTS[path]}' if path in EFFECTS else ''}"
        for path, (old, new) in changed.items()
    ]


def check_schedule(
    saved: dict[str, Any], config: TrainConfig, *, step: int, workdir: AnyPath, allowed: bool
) -> list[str]:
    """What another number of steps does to the learning rate at `step`, as sentences to show.

    `saved` is what was stored with `step`. Raises ValueError, unless it is `allowed`
    (--change_schedule), where `steps` or `epochs` have changed and the run had come to the end of
    its schedule, is past the new end, or would continue with more than `RATE_JUMP` times the
    learning rate. `optim.learning_rate` and its like may change: whoever sets them means the rate.
    """
    before, num_images = config_from_json(json.dumps(saved["config"])), saved["num_images"]
    old_steps, new_steps = num_steps(before, num_images), num_steps(config, num_images)
    old_rate = _rate(before, step, steps=old_steps, num_images=num_images)
    new_rate = _rate(config, step, steps=new_steps, num_images=num_images)
    change = f"the learning rate of step {step + 1} was to be {old_rate:.3g} and is {new_rate:.3g}"
    # With the old peak and warm-up: what the other number of steps does by itself.
    by_steps = _rate(before, step, steps=new_steps, num_images=num_images)
    if new_steps != old_steps and not allowed:
        if new_steps <= step:
            raise ValueError(
                f"{workdir} is at step {step} of {old_steps}, past the {new_steps} steps that are "
                "given now, so nothing would be trained and the learning rate never reach its end. "
                "Give the former number again, with --max_steps_this_run to end early, or "
                "add --change_schedule to take the weights as they are."
            )
        if step >= old_steps or by_steps > RATE_JUMP * old_rate:
            state = "has finished its" if step >= old_steps else f"is at step {step} of"
            effect = f"would go from {old_rate:.3g} to {new_rate:.3g}"
            if math.isclose(old_rate, new_rate, rel_tol=1e-2):
                effect = f"would follow another curve from {old_rate:.3g} on"
            raise ValueError(
                f"{workdir} {state} {old_steps} steps, and with {new_steps} its learning rate "
                f"{effect}: another schedule, begun in its middle, not a longer training. To train "
                "these weights further, start a new run from them, with a warm-up of its own: "
                f"--pretrained={workdir} and another --workdir. To change the schedule of this run "
                "all the same, add --change_schedule."
            )
    return [] if math.isclose(old_rate, new_rate, rel_tol=1e-3) else [change]


def _rate(config: TrainConfig, step: int, *, steps: int, num_images: int) -> float:
    warmup_steps = num_warmup_steps(config, num_images)
    return learning_rate(config.optim, step, steps=steps, warmup_steps=warmup_steps)
