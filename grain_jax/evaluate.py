"""Zero-shot classification, retrieval and grounding of a checkpoint.

python -m grain_jax.evaluate --checkpoint=RUN                 (what the run itself was measured by)
python -m grain_jax.evaluate --checkpoint=RUN --data=IMAGES   (labels.csv, or one subfolder a class)
python -m grain_jax.evaluate --checkpoint=RUN --data=RECORDS  (written by grain_jax.prepare)

What every figure means is said in `docs/evaluation.md`.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from grain_jax.config import DataConfig, MeshConfig
from grain_jax.data.sources import open_source
from grain_jax.evaluation.encode import Encoder
from grain_jax.evaluation.folders import load_zero_shot
from grain_jax.evaluation.report import hardware, versions
from grain_jax.evaluation.suite import evaluate, evaluate_records
from grain_jax.evaluation.tables import print_results
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.training import checkpoint
from grain_jax.training.sharding import make_mesh

RECORD_TASKS = ("retrieval", "grounding")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 the user has something to change, 130 interrupted."""
    options = _parse(arguments)
    messages, output = Console(stderr=True), Console()
    try:
        report = _evaluate(options, messages)
        path = _output_path(options)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        messages.print(
            f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        messages.print("Stopped; nothing was written.")
        return 130
    print_results(report["results"], output)
    output.print(f"Written to {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grain_jax.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="folder of a run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the one keep-best kept")
    add("--data", type=Path, help="labelled images, or prepared records (default: the run's own)")
    add("--split", help="of prepared records (default: the run's evaluation split)")
    add("--tasks", help="of prepared records: retrieval,grounding (default: both)")
    add("--classes", default="", help="names: .txt, or .json list or {label: name}")
    add("--templates", default="", help='prompts with one "{}": .txt or .json; file.json#key')
    add("--descriptions", default="", help=".json {class: [description, ...]}")
    add(
        "--description_template",
        "--description-template",
        default="{}",
        metavar="TEXT",
        help='what the image meets, e.g. "a photo of a {name}, which has {}" (default: "{}")',
    )
    add("--keep_names", "--keep-names", action="store_true", help="leave underscores in names")
    add("--alphas", type=_numbers, help="weights of the whole image, e.g. 1,0.5,0")
    add("--region_score", "--region-score", choices=("descriptions", "queries"))
    add("--name_ensemble", "--name-ensemble", choices=("embedding", "cosine"))
    add("--batch_size", "--batch-size", type=int, help="images at once (default: the run's)")
    add("--output", type=Path, help="results as JSON (default: in the run's folder)")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[float, ...]:
    alphas = tuple(float(part) for part in text.split(","))
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise argparse.ArgumentTypeError(f"{text!r} should be numbers from 0 to 1")
    return alphas


def _evaluate(options: argparse.Namespace, messages: Console) -> dict[str, Any]:
    def note(text: str) -> None:
        messages.print(f"Note: {text}", markup=False, highlight=False, soft_wrap=True)

    mesh = make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    loaded = checkpoint.load(options.checkpoint, step=options.step, best=options.best, mesh=mesh)
    config = loaded.config
    settings = {
        name: getattr(options, name)
        for name in ("alphas", "region_score", "name_ensemble", "batch_size")
        if getattr(options, name) is not None
    }
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, **settings)
    )
    encoder = Encoder(
        loaded.model,
        loaded.params,
        tokenizer=loaded.tokenizer,
        preprocessing=loaded.preprocessing,
        batch_size=config.evaluation.batch_size,
        caption_length=config.data.caption_length,
        description_length=config.data.description_length,
        mesh=mesh,
    )
    if options.data is None:
        _refuse(options, ("split", "tasks", "classes", "templates", "descriptions"), "--data")
        results = evaluate(encoder, config, final=True, note=note)
    elif (options.data / "dataset_info.json").exists():
        _refuse(options, ("classes", "templates", "descriptions"), "labelled images")
        results = _records(options, encoder, config.data)
    else:
        _refuse(options, ("split", "tasks"), "prepared records")
        dataset = load_zero_shot(
            options.data,
            classes=options.classes,
            templates=options.templates,
            descriptions=options.descriptions,
            description_template=options.description_template,
            default_templates=loaded.templates,
            keep_names=options.keep_names,
            note=note,
        )
        results = evaluate_zero_shot(
            encoder,
            dataset,
            alphas=config.evaluation.alphas,
            name_ensemble=config.evaluation.name_ensemble,
            region_score=config.evaluation.region_score,
            details=True,
        )
    if encoder.truncated_texts:
        note(
            f"{encoder.truncated_texts} texts were longer than the {config.data.caption_length} "
            f"(captions) or {config.data.description_length} (descriptions) tokens of the run, "
            "and cut."
        )
    return {
        "checkpoint": str(options.checkpoint),
        "step": loaded.step,
        "data": str(options.data) if options.data else "the run's own",
        "settings": {
            "alphas": config.evaluation.alphas,
            "region_score": config.evaluation.region_score,
            "name_ensemble": config.evaluation.name_ensemble,
        },
        "results": results,
        "versions": versions(),
        "hardware": hardware(),
    }


def _records(options: argparse.Namespace, encoder: Encoder, data: DataConfig) -> dict[str, float]:
    tasks = tuple(options.tasks.split(",")) if options.tasks else RECORD_TASKS
    if unknown := [task for task in tasks if task not in RECORD_TASKS]:
        raise ValueError(
            f"Prepared records can be asked for {' and '.join(RECORD_TASKS)}, not {unknown[0]!r}; "
            "zero-shot classification takes labelled images."
        )
    split = options.split or data.eval_split or "validation"
    data = dataclasses.replace(data, source="records", directory=str(options.data))
    size = encoder.preprocessing.image_size
    source = open_source(data, split, image_size=size)
    try:
        training = open_source(data, data.train_split, image_size=size)
    except ValueError:  # a folder of test data only: no boxes to fit the baseline to
        training = None
    results = evaluate_records(encoder, source, split, tasks=tasks, training=training)
    if not results:
        raise ValueError(
            f"Split {split!r} of {str(options.data)!r} and this model have nothing to compare for "
            f"{' and '.join(tasks)}: retrieval needs captions, grounding boxes and a GRAIN model."
        )
    return results


def _refuse(options: argparse.Namespace, names: Sequence[str], needs: str) -> None:
    if given := [name for name in names if getattr(options, name)]:
        raise ValueError(f"--{given[0]} goes with {needs}; leave it out or change --data.")


def _output_path(options: argparse.Namespace) -> Path:
    if options.output is not None:
        return options.output
    name = "evaluation.json" if options.data is None else f"evaluation_{options.data.name}.json"
    return options.checkpoint / name


if __name__ == "__main__":
    sys.exit(main())
