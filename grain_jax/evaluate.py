"""Zero-shot classification, retrieval and grounding of a checkpoint.

python -m grain_jax.evaluate --checkpoint=RUN                 (what the run itself was measured by)
python -m grain_jax.evaluate --checkpoint=RUN --data=IMAGES   (labels.csv, or one subfolder a class)
python -m grain_jax.evaluate --checkpoint=RUN --data=RECORDS  (written by grain_jax.prepare)

RUN may also be an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip: a
folder, or a name on the Hugging Face hub.

What every figure means is said in `docs/evaluation.md`.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from grain_jax.config import DataConfig, MeshConfig, TrainConfig
from grain_jax.data.sources import open_source
from grain_jax.evaluation.encode import Encoder
from grain_jax.evaluation.folders import load_zero_shot
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite import best_metric_name, evaluate, evaluate_records
from grain_jax.evaluation.tables import print_results
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.interop.read import read_model
from grain_jax.training import checkpoint, environment
from grain_jax.training.sharding import make_mesh

RECORD_TASKS = ("retrieval", "grounding")
PIPE_WIDTH = 120  # columns of what is printed to a file or pipe
# Options that only one kind of figures looks at.
ZERO_SHOT = ("alphas", "region_score", "name_ensemble")
OF_IMAGES = ("classes", "templates", "descriptions", "description_template", "keep_names")
OF_RECORDS = ("split", "tasks")
OF_DESCRIPTIONS = ("description_template", "alphas", "region_score")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 the user has something to change, 130 interrupted."""
    options = _parse(arguments)
    messages, output = Console(stderr=True), Console()
    if not output.is_terminal:
        output.width = PIPE_WIDTH
    try:
        _check(options)
        report = _evaluate(options, messages)
    except (ValueError, OSError) as error:
        _say_error(messages, str(error))
        return 1
    except KeyboardInterrupt:
        messages.print("Stopped; nothing was written.")
        return 130
    path = _output_path(options, report)
    try:
        print_results(report["results"], output)
    finally:  # also where the reader of a pipe has gone
        written = _write(report, path, messages)
    if written:
        output.print(f"Written to {path}", markup=False, highlight=False, soft_wrap=True)
    return 0 if written else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grain_jax.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="run folder, or other model (above)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the one keep-best kept")
    add("--data", help="labelled images, or prepared records (default: the run's own)")
    add("--split", help="of prepared records (default: the run's evaluation split)")
    add("--tasks", help="of prepared records: retrieval,grounding (default: both)")
    add("--classes", help="names: .txt, or .json list or {label: name}")
    add("--templates", help='prompts with one "{}": .txt or .json; file.json#key')
    add("--descriptions", help=".json {class: [description, ...]}")
    add(
        "--description_template",
        "--description-template",
        metavar="TEXT",
        help='what the image meets, e.g. "a photo of a {name}, which has {}" (default: "{}")',
    )
    add(
        "--keep_names",
        "--keep-names",
        action="store_true",
        default=None,
        help="leave underscores in names",
    )
    add("--alphas", type=_numbers, help="weights of the whole image, e.g. 1,0.5,0")
    add("--region_score", "--region-score", choices=("descriptions", "queries"))
    add("--name_ensemble", "--name-ensemble", choices=("embedding", "cosine"))
    add("--batch_size", "--batch-size", type=int, help="images at once (default: the run's)")
    add("--output", help="file of the results, JSON (default: one in the run's folder)")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Turns paths into `Path`s and refuses what does not apply, before anything is loaded."""
    for name in ("checkpoint", "data", "output"):
        given = getattr(options, name)
        if given is not None and "://" in given:
            raise ValueError(
                f"--{name} takes a folder or file of this machine, not {given!r}; copy or mount it "
                "here first."
            )
        setattr(options, name, None if given is None else Path(given))
    kind = _kind(options.data)
    if kind != "records":
        _refuse(options, OF_RECORDS, "prepared records")
    if kind != "images":
        _refuse(options, OF_IMAGES, "labelled images")
    if kind == "records":
        _refuse(options, ZERO_SHOT, "zero-shot classification")
    if options.output is not None and not options.output.parent.is_dir():
        raise ValueError(
            f"There is no folder {str(options.output.parent)!r} for --output; make it first."
        )


def _kind(data: Path | None) -> str:
    """What --data names: nothing, so the run's "own" suite; "records" or "images"."""
    if data is None:
        return "own"
    return "records" if (data / "dataset_info.json").exists() else "images"


def _refuse(options: argparse.Namespace, names: Sequence[str], needs: str) -> None:
    if given := [name for name in names if getattr(options, name) is not None]:
        raise ValueError(f"--{given[0]} goes with {needs}; leave it out or change --data.")


def _numbers(text: str) -> tuple[float, ...]:
    alphas = tuple(float(part) for part in text.split(","))
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise argparse.ArgumentTypeError(f"{text!r} should be numbers from 0 to 1")
    return alphas


def _evaluate(options: argparse.Namespace, messages: Console) -> dict[str, Any]:
    def note(text: str) -> None:
        messages.print(f"Note: {text}", markup=False, highlight=False, soft_wrap=True)

    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = read_model(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    config = loaded.config
    settings = {
        name: getattr(options, name)
        for name in (*ZERO_SHOT, "batch_size")
        if getattr(options, name) is not None
    }
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, **settings)
    )
    kind, split = _kind(options.data), None
    if kind == "own" and config.data.source == "records" and not config.evaluation.zero_shot:
        if not config.data.directory:
            raise ValueError(
                f"{options.checkpoint} says nothing of data to evaluate it on; give some with "
                "--data."
            )
        _refuse(options, ZERO_SHOT, "zero-shot classification, which this run has no images for")
    if kind == "records":
        split = options.split or config.data.eval_split or "validation"
    if config.model.kind == "clip" and {"alphas", "region_score"} & set(settings):
        note("a CLIP model has no regions: --alphas and --region_score change none of its figures.")
    if options.best:
        _note_choice(options, loaded.config, split, note)
    encoder = Encoder(
        loaded.model,
        loaded.params,
        tokenizer=loaded.tokenizer,
        preprocessing=loaded.preprocessing,
        batch_size=config.evaluation.batch_size,
        caption_length=config.data.caption_length,
        description_length=config.data.description_length,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        mesh=mesh,
    )
    if kind == "own":
        results = evaluate(encoder, config, final=True, note=note)
        if not results:
            raise ValueError("This run has no evaluation split or images of its own; give --data.")
    elif split is not None:
        results = _records(encoder, config.data, options.data, split, _tasks(options))
    else:
        results = _images(options, encoder, config, loaded.templates, note)
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the {config.data.caption_length} "
            f"(captions) or {config.data.description_length} (descriptions) tokens of the run, "
            "and cut."
        )
    shown = {name: getattr(config.evaluation, name) for name in ZERO_SHOT}
    return {
        "checkpoint": str(options.checkpoint),
        "step": loaded.step,
        "data": str(options.data) if options.data else "the run's own",
        "split": split,
        "settings": shown if split is None else {"tasks": _tasks(options)},
        "results": results,
        "versions": versions(),
        "hardware": hardware(),
    }


def _note_choice(
    options: argparse.Namespace, config: TrainConfig, split: str | None, note: Callable[[str], None]
) -> None:
    """Says so where the figures are of the very data that the best checkpoint was chosen on."""
    metric = best_metric_name(config)
    chosen_on = metric.partition("/")[0]
    same = options.data is None
    if split is not None and config.data.source == "records":
        folder = Path(config.data.directory).resolve()
        same = (
            options.data.resolve() == folder
            and split.partition("[")[0] == chosen_on.partition("[")[0]
        )
    if metric and same:
        note(
            f"--best is the checkpoint with the highest {metric}, so figures of {chosen_on!r} "
            "flatter it; compare models on data that chose none of them."
        )


def _images(
    options: argparse.Namespace,
    encoder: Encoder,
    config: TrainConfig,
    templates: Sequence[str],
    note: Callable[[str], None],
) -> dict[str, float]:
    dataset = load_zero_shot(
        options.data,
        classes=options.classes or "",
        templates=options.templates or "",
        descriptions=options.descriptions or "",
        description_template=options.description_template or "{}",
        default_templates=templates,
        keep_names=bool(options.keep_names),
        note=note,
    )
    if not any(dataset.descriptions.values()):
        _refuse(options, OF_DESCRIPTIONS, "descriptions, which these images lack (--descriptions)")
    return evaluate_zero_shot(
        encoder,
        dataset,
        alphas=config.evaluation.alphas,
        name_ensemble=config.evaluation.name_ensemble,
        region_score=config.evaluation.region_score,
        details=True,
    )


def _tasks(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(options.tasks.split(",")) if options.tasks else RECORD_TASKS


def _records(
    encoder: Encoder, data: DataConfig, folder: Path, split: str, tasks: Sequence[str]
) -> dict[str, float]:
    if unknown := [task for task in tasks if task not in RECORD_TASKS]:
        raise ValueError(
            f"Prepared records can be asked for {' and '.join(RECORD_TASKS)}, not {unknown[0]!r}; "
            "zero-shot classification takes labelled images."
        )
    data = dataclasses.replace(data, source="records", directory=str(folder))
    size = encoder.preprocessing.image_size
    source = open_source(data, split, image_size=size)
    try:
        training = open_source(data, data.train_split, image_size=size)
    except ValueError:  # a folder of test data only: no boxes to fit the baseline to
        training = None
    results = evaluate_records(encoder, source, split, tasks=tasks, training=training)
    if not results:
        raise ValueError(
            f"Split {split!r} of {str(folder)!r} and this model have nothing to compare for "
            f"{' and '.join(tasks)}: retrieval needs captions, grounding boxes and a GRAIN model."
        )
    return results


def _output_path(options: argparse.Namespace, report: dict[str, Any]) -> Path:
    """By default a file of the run's folder that other data, splits and steps do not overwrite.

    Beside a checkpoint that is a file; here, for one from the hub.
    """
    if options.output is not None:
        return options.output
    folder, model = options.checkpoint, ""
    if not folder.is_dir():
        name = folder.stem if folder.exists() else folder.name  # of the hub's, dots and all
        folder, model = (folder.parent if folder.exists() else Path()), name
    elif folder.name == checkpoint.FOLDER:
        folder = folder.parent
    data = options.data.resolve().name if options.data else ""
    parts = [
        "evaluation",
        model,
        data,
        report["split"] or "",
        options.tasks or "",
        f"step{report['step']}",
    ]
    name = "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-") for part in parts if part)
    return folder / f"{name}.json"


def _write(report: dict[str, Any], path: Path, messages: Console) -> bool:
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        _say_error(messages, f"the results could not be written: {error}. Give another --output.")
        return False
    return True


def _say_error(messages: Console, text: str) -> None:
    messages.print(f"Error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    environment.restart_with_huge_pages()
    sys.exit(main())
