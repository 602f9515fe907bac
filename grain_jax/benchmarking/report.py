"""What was measured as rows of a table, and as JSON."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from typing import Any

from grain_jax.benchmarking.checkpoints import CheckpointTiming
from grain_jax.benchmarking.evaluation import EvaluationTiming
from grain_jax.benchmarking.hardware import peak_of
from grain_jax.benchmarking.loading import LoaderTiming
from grain_jax.benchmarking.step import StepTiming
from grain_jax.benchmarking.sweep import Variant, best
from grain_jax.benchmarking.turns import Turns
from grain_jax.config import TrainConfig
from grain_jax.config.cli import config_to_json
from grain_jax.inference.encoder import MAX_TOKEN_BYTES

GIB = 2**30
PERCENTS = (10, 50, 90, 99)


def settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting, as JSON."""
    return json.loads(config_to_json(config))


def model_row(config: TrainConfig, *, with_batch: bool = True) -> str:
    """The model, in words; `with_batch`: and the batch size and remat of its training step."""
    model, vision = config.model, config.model.vision
    row = (
        f"{model.type}, {vision.depth} x {vision.width} / {vision.patch_size}, "
        f"{model.image_size} px, {model.dtype}"
    )
    return f"{row}, batch {config.batch_size:,}, remat {model.remat}" if with_batch else row


def step_figures(timing: StepTiming) -> dict[str, Any]:
    """All of a step, as JSON."""
    return {
        "images_per_second": timing.images_per_second,
        "images_per_second_per_device": timing.images_per_second / timing.num_devices,
        "percentiles": _percentiles(timing),
        "mfu": timing.mfu(timing.flops),
        "mfu_without_padding": timing.mfu(timing.useful_flops),
        "useful_fraction": timing.useful_fraction,
        **dataclasses.asdict(timing),
    }


def step_rows(timing: StepTiming) -> dict[str, str]:
    """Of a step, for a table."""
    each = timing.images_per_second / timing.num_devices
    counted, useful = (
        flops.total / timing.images / 1e9 for flops in (timing.flops, timing.useful_flops)
    )
    rate = timing.flops.total / timing.pace / timing.num_devices / 1e12
    rows = {
        "step": _spread(timing),
        "images/s": f"{timing.images_per_second:,.4g} ({each:,.4g} a device)",
        "GFLOP an image": f"{counted:,.2f} ({useful:,.2f} without padding); matrix products, "
        "forward and backward",
        "useful of these": f"{timing.useful_fraction:.0%}; of those of texts "
        f"{timing.useful_flops.texts / timing.flops.texts:.0%}, the rest is padding",
        "TFLOP/s a device": f"{rate:.3g}",
        "MFU": _utilization(timing),
        "memory of a device": _memory(timing),
        "compilation": f"{timing.compile_seconds:,.1f} s",
    }
    if timing.data_wait is not None:
        rows["data wait"] = f"{timing.data_wait:.1%} of the time"
    return rows


def turns_rows(turns: Turns) -> dict[str, str]:
    """Of two codes in turns, for a table."""
    own, theirs = (1e3 * statistics.median(some) for some in (turns.own, turns.theirs))
    low, high = min(turns.ratios), max(turns.ratios)
    rows = {
        f"{turns.peer} / grain_jax": f"{turns.ratio:.2f} ({low:.2f}-{high:.2f}), "
        f"{len(turns.own)} turns of {turns.steps_a_turn} steps; more than 1: grain_jax is faster",
        "a step": f"{own:,.1f} ms grain_jax, {theirs:,.1f} ms {turns.peer}",
        "parameters": f"{turns.own_parameters:,} and {turns.their_parameters:,}",
        "other than the same": "\n".join(turns.differences) or "nothing",
    }
    if turns.own_peak_bytes is not None and turns.their_peak_bytes is not None:
        rows["peak memory"] = (
            f"{turns.own_peak_bytes / GIB:.2f} GiB grain_jax, "
            f"{turns.their_peak_bytes / GIB:.2f} GiB {turns.peer}; each of a process of its own"
        )
    return rows


def turns_figures(turns: Turns) -> dict[str, Any]:
    """The same as JSON."""
    return {"ratio": turns.ratio, "ratios": turns.ratios, **dataclasses.asdict(turns)}


def loader_rows(timing: LoaderTiming) -> dict[str, str]:
    """Of a loader, for a table."""
    rows = {
        "loader": timing.plan,
        "batch": f"{timing.images:,} images of {timing.bytes_of_image / 2**10:,.0f} KiB each",
        "images/s": f"{timing.images_per_second:,.4g} of this process",
        "until a batch is there": _spread(timing),
        "first batch": f"{timing.first_seconds:,.2f} s",
    }
    if timing.cpu_seconds:
        per_cpu = timing.images * len(timing.seconds) / timing.cpu_seconds
        rows["images a CPU second"] = f"{per_cpu:,.4g}"
    return rows


def loader_figures(timing: LoaderTiming) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "images_per_second": timing.images_per_second,
        "percentiles": _percentiles(timing),
        **dataclasses.asdict(timing),
    }


def evaluation_rows(timing: EvaluationTiming) -> dict[str, str]:
    """Of an evaluation, for a table."""
    mfu = "unknown: no published peak for this device"
    if timing.mfu is not None:
        mfu = f"{timing.mfu:.1%}, decoding included"
    rounds = f"median of {len(timing.image_seconds) - 1} times"
    after = statistics.median(timing.classify_seconds[1:])
    rows = {
        "set": f"{timing.images:,} images, {timing.classes:,} classes, {timing.texts:,} texts; "
        f"batches of {timing.batch_size:,}",
        "images/s": f"{timing.images_per_second:,.4g} decoded and encoded "
        f"({timing.images_per_second / timing.num_devices:,.4g} a device); {rounds}",
        "GFLOP an image": f"{timing.image_flops / 1e9:,.2f}, forward",
        "MFU": mfu,
        "texts/s": f"{timing.texts_per_second:,.4g} encoded; {rounds}, tokens kept from the first "
        f"time, up to {MAX_TOKEN_BYTES / 2**20:,.0f} MiB",
        "classes and scores": f"{after:,.3f} s, texts encoded again; {rounds}",
        "first time": f"{timing.image_seconds[0]:,.1f} s images, {timing.text_seconds[0]:,.1f} s "
        f"texts, {timing.classify_seconds[0]:,.1f} s classes and scores, with compilation",
    }
    if timing.peak_bytes is not None:
        rows["memory of a device"] = f"{timing.peak_bytes / GIB:.2f} GiB peak"
    return rows


def evaluation_figures(timing: EvaluationTiming) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "images_per_second": timing.images_per_second,
        "texts_per_second": timing.texts_per_second,
        "mfu": timing.mfu,
        **dataclasses.asdict(timing),
    }


def checkpoint_rows(timing: CheckpointTiming) -> dict[str, str]:
    """Of saving and restoring, for a table."""
    blocked, saved, restored = (
        statistics.median(seconds)
        for seconds in (timing.blocked_seconds, timing.save_seconds, timing.restore_seconds)
    )
    how = "in the background" if timing.asynchronous else "at once"
    rows = {
        "state": f"{timing.num_bytes / 1e9:,.3f} GB, written {how} to {timing.folder}",
        "the step is blocked": f"{blocked:,.3f} s, {blocked / timing.step_seconds:,.2g} steps",
        "a step beside a save": _beside(timing),
        "save": f"{saved:,.3f} s, {timing.save_rate / 1e9:,.3f} GB/s, with nothing beside it",
        "restore": f"{restored:,.3f} s, {timing.restore_rate / 1e9:,.3f} GB/s; the system may have "
        "kept it in memory",
    }
    if not timing.asynchronous:
        del rows["a step beside a save"]
    return rows


def checkpoint_figures(timing: CheckpointTiming) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "save_bytes_per_second": timing.save_rate,
        "restore_bytes_per_second": timing.restore_rate,
        **dataclasses.asdict(timing),
    }


SWEEP_COLUMNS = (
    "remat",
    "batch",
    "images/s",
    "a device",
    "step ms",
    "MFU",
    "GiB",
    "compiled s",
    "",
)


def sweep_cells(variant: Variant, *, is_best: bool) -> tuple[str, ...]:
    """One line of a sweep, under `SWEEP_COLUMNS`."""
    timing = variant.timing
    needed = variant.needed_bytes
    gib = "?" if needed is None else f"{needed / GIB:.2f}"
    size = f"{variant.batch_size:,}"
    if timing is None:
        return (variant.remat, size, "", "", "", "", gib, "", f"does not fit: {variant.reason}")
    mfu = timing.mfu(timing.flops)
    return (
        variant.remat,
        size,
        f"{timing.images_per_second:,.4g}",
        f"{timing.images_per_second / timing.num_devices:,.4g}",
        f"{1e3 * timing.median:,.1f}",
        "" if mfu is None else f"{mfu:.1%}",
        gib,
        f"{timing.compile_seconds:,.0f}",
        "best" if is_best else "",
    )


def sweep_figures(variants: Sequence[Variant]) -> dict[str, Any]:
    """All of a sweep, as JSON."""
    found = best(variants)
    return {
        "variants": [
            {
                "remat": one.remat,
                "batch_size": one.batch_size,
                "fits": one.timing is not None,
                "reason": one.reason,
                "needed_bytes": one.needed_bytes,
                "best": one is found,
                "step": None if one.timing is None else step_figures(one.timing),
            }
            for one in variants
        ]
    }


def _beside(timing: CheckpointTiming) -> str:
    alone = f"{1e3 * timing.step_seconds:,.1f} ms"
    if not timing.beside_seconds:
        return f"none: each save was on disk before the first step ({alone} alone) had ended"
    beside = statistics.median(timing.beside_seconds)
    return f"{1e3 * beside:,.1f} ms, {beside / timing.step_seconds:.2f} times one alone ({alone})"


def _percentiles(timing: StepTiming | LoaderTiming) -> dict[str, float]:
    return {f"p{percent}": timing.percentile(percent) for percent in PERCENTS} | {
        "p50": statistics.median(timing.seconds)
    }


def _spread(timing: StepTiming | LoaderTiming) -> str:
    found = {name: 1e3 * value for name, value in _percentiles(timing).items()}
    return (
        f"{found['p50']:,.1f} ms (10-90 %: {found['p10']:,.1f}-{found['p90']:,.1f}, "
        f"99 %: {found['p99']:,.1f})"
    )


def _utilization(timing: StepTiming) -> str:
    peak, all_positions = peak_of(timing.device_kind), timing.mfu(timing.flops)
    if peak is None:
        return "unknown: no published peak for this device"
    if all_positions is None:
        return "not counted: some parameters are frozen"
    useful = timing.mfu(timing.useful_flops)
    return f"{all_positions:.1%} of {peak.bfloat16 / 1e12:,.0f} TFLOP/s ({useful:.1%} w/o padding)"


def _memory(timing: StepTiming) -> str:
    compiled = (
        f"{timing.argument_bytes / GIB:.2f} GiB state and batch, "
        f"{timing.temporary_bytes / GIB:.2f} temporary, as compiled"
    )
    if timing.peak_bytes is None:
        return compiled
    return f"{timing.peak_bytes / GIB:.2f} GiB peak of the process; {compiled}"
