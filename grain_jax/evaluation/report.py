"""What a run leaves behind for a reader: report.md, curves.png, grounding.png."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from grain_jax import __version__
from grain_jax.config import TrainConfig
from grain_jax.data.sources import open_source
from grain_jax.evaluation.curves import draw_curves, read_metrics
from grain_jax.evaluation.encode import Encoder, errors_about
from grain_jax.evaluation.pictures import draw_grounding, grounding_examples
from grain_jax.evaluation.tables import headline, result_tables

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_report(
    run_folder: str | Path,
    config: TrainConfig,
    results: Mapping[str, float],
    *,
    encoder: Encoder,
    facts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes the pictures that there is something to draw for, then `report.md`; returns all paths.

    `results` are those of `suite.evaluate(final=True)`, `facts` what only the caller knows (times,
    parameters, commit). Every process must call it (pictures run the model); the first one writes.
    """
    folder = Path(run_folder)
    written = []
    split = "unseen" if config.data.source == "world" else config.data.eval_split
    examples = []
    if split and config.model.kind == "grain" and config.evaluation.num_pictures > 0:
        source = open_source(config.data, split, image_size=encoder.preprocessing.image_size)
        with errors_about(f"Split {split!r}"):
            examples = grounding_examples(encoder, source, config.evaluation.num_pictures)
    if jax.process_index() != 0:
        return []
    records = read_metrics(folder / "metrics.jsonl")
    if records:
        draw_curves(records, folder / "curves.png")
        written.append(folder / "curves.png")
    if examples:
        draw_grounding(examples, folder / "grounding.png")
        written.append(folder / "grounding.png")
    page = _page(config, results, facts=facts or {}, pictures=[path.name for path in written])
    (folder / "report.md").write_text(page, encoding="utf-8")
    return [folder / "report.md", *written]


def hardware() -> dict[str, str]:
    """The machine in words: devices, hosts, processor."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "devices": f"{jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()})",
        "processes": str(jax.process_count()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of this package, Python and what the figures depend on."""
    found = {"grain_jax": __version__, "python": sys.version.split()[0]}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def _page(
    config: TrainConfig,
    results: Mapping[str, float],
    *,
    facts: Mapping[str, str],
    pictures: Sequence[str],
) -> str:
    parts = [f"# {config.name}\n", f"{_what_ran(config)}\n"]
    if sentence := headline(results):
        parts.append(f"**{sentence}**\n")
    tables = result_tables(results)
    parts.append("## Results\n")
    parts += [table.markdown() for table in tables] or ["Nothing was held out to measure.\n"]
    if pictures:
        titles = {"grounding.png": "What the regions found", "curves.png": "Training"}
        parts.append("## Pictures\n")
        parts += [
            f"### {titles[name]}\n\n![{titles[name]}]({name})\n" for name in reversed(pictures)
        ]
    parts.append("## The run\n")
    for title, entries in (
        ("Settings", _settings(config)),
        ("Facts", dict(facts)),
        ("Hardware", hardware()),
        ("Versions", versions()),
    ):
        if entries:
            rows = "\n".join(f"| {key} | {value} |" for key, value in entries.items())
            parts.append(f"### {title}\n\n| | |\n| --- | --- |\n{rows}\n")
    parts.append("All settings: `config.json`. All figures: `metrics.jsonl`.\n")
    return "\n".join(parts)


def _what_ran(config: TrainConfig) -> str:
    kind = "GRAIN" if config.model.kind == "grain" else "CLIP (baseline, no regions)"
    data = (
        f"the procedural world ({config.data.world.level}, "
        f"{config.data.world.num_train_images:,} images)"
        if config.data.source == "world"
        else f"`{config.data.directory}`"
    )
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    return f"{kind} trained on {data} for {length} of batch {config.batch_size:,}."


def _settings(config: TrainConfig) -> dict[str, str]:
    model, loss = config.model, config.loss
    entries = {
        "image": f"{model.image_size} px, patches of {model.vision.patch_size}",
        "image tower": f"{model.vision.depth} layers of {model.vision.width}",
        "text tower": f"{model.text.depth} layers of {model.text.width}",
    }
    if model.kind == "grain":
        decoder = model.decoder
        entries["decoder"] = (
            f"{decoder.depth} layers of {decoder.width}, {decoder.num_queries} region queries"
        )
    weights = {
        "contrastive": loss.contrastive_weight,
        "image to descriptions": loss.image_description_weight,
    }
    if model.kind == "grain":
        weights |= {
            "boxes": loss.box_weight,
            "boxes of earlier layers": loss.auxiliary_box_weight,
            "regions": loss.region_weight,
        }
    return entries | {
        "loss weights": ", ".join(f"{name} {weight:g}" for name, weight in weights.items()),
        "compute": model.dtype,
        "learning rate": f"{config.optim.learning_rate:g}",
        "weight decay": f"{config.optim.weight_decay:g}",
        "seed": str(config.seed),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
