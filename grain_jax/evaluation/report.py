"""What a run leaves behind for a reader: report.md, curves.png, grounding.png and its pages."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from grain_jax import __version__
from grain_jax.config import TrainConfig
from grain_jax.data.source import DataSource, data_source
from grain_jax.evaluation.details import ResultDetails
from grain_jax.evaluation.grounding_examples import grounding_examples
from grain_jax.evaluation.suite import best_metric_name, named_folders
from grain_jax.evaluation.tables import result_tables
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.models.learned import Learned, what_lacks
from grain_jax.results import Result, read_results
from grain_jax.visualize.curves import draw_curves, read_metrics
from grain_jax.visualize.grounding_sheet import draw_grounding

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_report(
    run_folder: str | Path,
    config: TrainConfig,
    results: Sequence[Result],
    *,
    encoder: Encoder,
    facts: Mapping[str, str] | None = None,
    details: ResultDetails | None = None,
) -> list[Path]:
    """Writes the figures that there is something to draw for, then `report.md`; returns all paths.

    `results` are those of `suite.evaluate(final=True)`, `details` what it has filled, `facts`
    what only the caller knows (times, parameters, commit). Every process must call it (figures run
    the model); the first one writes.
    """
    folder = Path(run_folder)
    written = []
    data = data_source(config.data, image_size=encoder.preprocessing.image_size)
    split, examples = data.shown_split, []
    if split and config.model.type == "grain" and config.evaluation.num_visualized > 0:
        source = data.records(split)
        with errors_about(f"Split {split!r}"):
            examples = grounding_examples(encoder, source, config.evaluation.num_visualized)
    if jax.process_index() != 0:
        return []
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics:
        draw_curves(metrics, read_results(folder), folder / "curves.png")
        written.append(folder / "curves.png")
    if examples:
        written += draw_grounding(examples, folder / "grounding.png")
    page = _page(
        config,
        results,
        learned=encoder.learned,
        facts=facts or {},
        images=[path.name for path in written],
        sets={} if details is None else details.zero_shot_sets,
    )
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
    """Of this package, Python and what the metrics depend on."""
    found = {"grain_jax": __version__, "python": sys.version.split()[0]}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES}


def _page(
    config: TrainConfig,
    results: Sequence[Result],
    *,
    learned: Learned,
    facts: Mapping[str, str],
    images: Sequence[str],
    sets: Mapping[str, Mapping[str, Any]],
) -> str:
    parts = [f"# {config.name}\n", f"{what_ran(config, learned)}\n"]
    if sentence := _data_of(config).headline(results):
        parts.append(f"**{sentence}**\n")
    tables = result_tables(results)
    parts.append("## Results\n")
    parts += [table.markdown() for table in tables] or ["Nothing was held out to measure.\n"]
    parts += _texts_of_sets(sets)
    if images:
        parts.append("## Figures\n")
        for title, of_kind in (("What the regions found", "grounding"), ("Training", "curves")):
            shown = [f"![{title}]({name})\n" for name in images if name.startswith(of_kind)]
            parts += [f"### {title}\n", *shown] if shown else []
    parts.append("## The run\n")
    for title, entries in (
        ("Settings", _settings(config) | _looked_at(config)),
        ("Facts", dict(facts)),
        ("Hardware", hardware()),
        ("Versions", versions()),
    ):
        if entries:
            rows = "\n".join(f"| {key} | {value} |" for key, value in entries.items())
            parts.append(f"### {title}\n\n| | |\n| --- | --- |\n{rows}\n")
    parts.append(
        "All settings: `config.json`. All metrics: `metrics.jsonl`, those of evaluation as records "
        "in `results.jsonl`.\n"
    )
    return "\n".join(parts)


def _texts_of_sets(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which files the texts of labelled images came from; [] where none came from a file."""
    roles = ("classes", "templates", "descriptions")
    rows = []
    for name, described in sets.items():
        if any(described[role]["file"] for role in ("images", *roles)):
            cells = [_file_cell(described[role]) for role in roles]
            rows.append(
                f"| {name} | {described['images']['count']:,} | " + " | ".join(cells) + " |"
            )
    if not rows:
        return []
    head = f"| set | images | {' | '.join(roles)} |\n| --- | --- | --- | --- | --- |\n"
    meaning = "Where the texts of the classes came from, with the SHA-256 of each file."
    return ["### Texts of the sets\n", f"{meaning}\n", head + "\n".join(rows) + "\n"]


def _file_cell(described: Mapping[str, Any]) -> str:
    """The texts' number and file: `12: d.json (0a1b2c3d)`."""
    if not described["count"]:
        return "-"
    if described["file"] is None:
        return f"{described['count']:,}"
    return (
        f"{described['count']:,}: `{Path(described['file']).name}` ({described['file_sha256'][:8]})"
    )


def _looked_at(config: TrainConfig) -> dict[str, str]:
    """What was measured before the end, and what decided on the best checkpoint."""
    settings = config.evaluation
    if not settings.eval_interval_steps:
        return {}
    names = [*named_folders(config, final=False)]
    split = _data_of(config).held_out_data()
    sets = ", ".join([*([split] if split else []), *names]) or "nothing"
    entries = {
        "measured during training": f"{sets}: every {settings.eval_interval_steps:,} steps, at "
        f"most {settings.max_images:,} images of each"
    }
    metric = best_metric_name(config) if config.checkpoint.keep_best else ""
    return entries | ({"best checkpoint by": metric} if metric else {})


def _data_of(config: TrainConfig) -> DataSource:
    return data_source(config.data, image_size=config.model.image_size)


def what_ran(config: TrainConfig, learned: Learned) -> str:
    """The kind of model, the data and the length of a run, as one sentence."""
    kind = "CLIP (baseline, no regions)"
    if config.model.type == "grain":
        lacking = what_lacks(learned)
        kind = f"GRAIN (no {lacking})" if lacking else "GRAIN"
    data = _data_of(config).training_data()
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    return f"{kind} trained on {data} for {length} of batch {config.batch_size:,}."


def _settings(config: TrainConfig) -> dict[str, str]:
    model, loss = config.model, config.loss
    entries = {
        "image": f"{model.image_size} px, patches of {model.vision.patch_size}",
        "image tower": f"{model.vision.depth} layers of {model.vision.width}",
        "text tower": f"{model.text.depth} layers of {model.text.width}",
    }
    if model.type == "grain":
        decoder = model.decoder
        entries["decoder"] = (
            f"{decoder.depth} layers of {decoder.width}, {decoder.num_queries} region queries"
        )
    weights = {
        "contrastive": loss.contrastive_weight,
        "image to descriptions": loss.image_description_weight,
    }
    if model.type == "grain":
        weights |= {
            "boxes": loss.box_weight,
            "boxes of earlier layers": loss.auxiliary_box_weight,
            "regions": loss.region_weight,
        }
    return entries | {
        "images against captions": loss.image_caption,
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
