"""Classify pictures and find phrases in them with a trained model.

python -m grain_jax.predict bird.jpg --checkpoint=RUN --labels="cardinal,blue jay"
python -m grain_jax.predict PICTURES --checkpoint=RUN --descriptions=birds.json --out=DIR --csv=FILE
python -m grain_jax.predict bird.jpg --checkpoint=RUN --phrases="a red crest;a long beak" --out=DIR

PICTURES is any number of files, folders (with their subfolders) and quoted globs.
Exit status: 0 all done, 1 nothing done or something to change, 2 a mistyped option, 3 done but for
pictures that could not be read, each of which is named, 130 interrupted. What is scored how:
`docs/use.md`.
"""

import argparse
import csv
import dataclasses
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grain_jax.data.checking import read_image_file
from grain_jax.data.transforms import decode_image
from grain_jax.evaluation.card import draw_card
from grain_jax.evaluation.folders import (
    IMAGE_SUFFIXES,
    bind_descriptions,
    check_templates,
    read_texts,
)
from grain_jax.evaluation.pictures import NamedBox
from grain_jax.inference import (
    BATCH_SIZE,
    WAYS,
    Classification,
    Grounding,
    ImageEmbeddings,
    Model,
    SeenText,
    load,
)
from grain_jax.training import environment

LISTS = (".csv", ".tsv", ".jsonl", ".yaml", ".yml")  # files that one may expect to be read
PIPE_WIDTH = 120  # columns of what is printed to a file or pipe
MAX_SHOWN = 20  # pictures on the screen; files hold all
COLUMNS = (
    "file",
    "asked",  # "label" or "phrase"
    "rank",
    "text",
    "score",
    "probability",
    "seen",  # the text whose region follows
    "cosine",
    *("x0", "y0", "x1", "y1"),
    "card",
)


@dataclass(frozen=True)
class Target:
    """A picture to look at, and the name of its card below --out."""

    file: Path
    card: Path


@dataclass(frozen=True)
class Question:
    """What is asked of every picture."""

    labels: tuple[str, ...]
    descriptions: dict[str, tuple[str, ...]] | None
    templates: tuple[str, ...] | None
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What the model says about one picture."""

    target: Target
    labels: Classification | None
    phrases: Grounding | None
    boxes_xyxy: np.ndarray | None  # [Q, 4] of all regions, in pixels
    view_xyxy: np.ndarray  # [4], the part of the picture that the model saw


@dataclass
class Outcome:
    """How far it came."""

    answers: list[Answer] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # what was given, and why not
    interrupted: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 the user has something to change, 3 some pictures were
    skipped, 130 interrupted.
    """
    options = _parse(arguments)
    messages, output = Console(stderr=True), Console()
    if not output.is_terminal:
        output.width = PIPE_WIDTH

    def say(text: str, style: str | None = None) -> None:
        messages.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    noted: set[str] = set()

    def note(text: str) -> None:
        if text not in noted:  # the reader of the descriptions and the model may say the same
            noted.add(text)
            say(f"Note: {text}")

    outcome = Outcome()
    try:
        question = _question(options, note)
        targets, outcome.skipped = find_pictures(options.images, options.out)
        _check_outputs(options, targets)
        for given, reason in outcome.skipped:
            say(f"Skipped {given}: {reason}", style="yellow")
        if targets:
            model = load(
                options.checkpoint,
                step=options.step,
                best=options.best,
                batch_size=options.batch_size,
                note=note,
            )
            try:
                _look(model, targets, question, options, outcome, messages)
            finally:  # what was done is not lost where, say, the disk is full of cards
                _write(options, question, outcome)
    except (ValueError, OSError) as error:
        say(f"Error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        say("Stopped; nothing was written.")
        return 130
    _print(outcome, output, options.min_cosine)
    return _conclude(options, outcome, say)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grain_jax.predict", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("images", nargs="+", metavar="PICTURE", help="files, folders, quoted globs")
    add("--checkpoint", required=True, metavar="RUN", help="run folder, or another model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the one keep-best kept")
    add("--labels", help='"a,b,c", or a file: .txt (one a line) or .json (list); file.json#key')
    add("--descriptions", help=".json {label: [description, ...]}; alone, its keys are the labels")
    add("--phrases", help='what to find: "a;b", or a file as for --labels')
    add("--templates", help='prompts with one "{}" for the label: .txt or .json')
    add(
        "--by",
        choices=WAYS,
        default=WAYS[0],
        help="what the whole image meets (default: %(default)s)",
    )
    add(
        "--alpha", type=_share, help="weight of the whole image, 0 to 1 (default: 0.5 with regions)"
    )
    add(
        "--min_cosine",
        "--min-cosine",
        type=float,
        default=-1.0,
        help="least cosine of a text and a region to give its box (default: any)",
    )
    add("--top", type=_count, default=5, help="labels a picture (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="a picture of each with its boxes")
    add("--csv", type=Path, metavar="FILE", help="a line for every answer")
    add("--json", type=Path, metavar="FILE", help="all answers with all boxes")
    add("--overwrite", action="store_true", help="replace what --out, --csv, --json wrote before")
    add(
        "--batch_size",
        "--batch-size",
        type=_count,
        default=BATCH_SIZE,
        help="pictures at once (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be from 0 to 1")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be at least 1")
    return value


def _question(options: argparse.Namespace, note: Callable[[str], None]) -> Question:
    labels = _texts(options.labels, ",", "--labels")
    phrases = _texts(options.phrases, ";", "--phrases")
    for option, texts, separator, other in (
        ("--labels", labels, ",", ";"),
        ("--phrases", phrases, ";", ","),
    ):
        if len(texts) == 1 and other in texts[0]:
            several = f"several are told apart by {separator!r}"
            note(f"{option} is taken for one text, {texts[0]!r}; {several}.")
    described = None
    if options.descriptions is not None:
        given = read_texts(options.descriptions)
        if not labels and isinstance(given, dict):
            labels = tuple(given)
        names = {label: label for label in labels}
        described = bind_descriptions(given, names, options.descriptions, "labels", note)
    if not labels and not phrases:
        raise ValueError(
            "There is nothing to look for: give --labels, --descriptions or --phrases."
        )
    if options.alpha is not None and described is None:
        raise ValueError(
            "--alpha weighs the whole image against regions, which are compared with "
            "--descriptions; give them, or leave --alpha out."
        )
    if options.by != WAYS[0] and described is None:
        raise ValueError(f"--by={options.by} goes with --descriptions; give them or leave it out.")
    if options.templates is not None and not labels:
        raise ValueError("--templates goes with --labels; give them or leave it out.")
    templates = None
    if options.templates is not None:
        templates = check_templates(read_texts(options.templates), options.templates)
    return Question(labels, described, templates, phrases)


def _texts(given: str | None, separator: str, option: str) -> tuple[str, ...]:
    """The texts of an option: in it, or in the file it names."""
    if given is None:
        return ()
    name = given.partition("#")[0]
    if Path(name).suffix in (".txt", ".json") or os.path.isfile(name):  # false of long texts too
        content = read_texts(given)
        if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
            raise ValueError(f"{option}: {given!r} must hold a list of texts.")
    else:
        content = given.split(separator)
        if Path(name).suffix in LISTS:
            raise ValueError(f"{option}: {given!r} is no file of .txt or .json; needed one.")
    texts = tuple(text.strip() for text in content if text.strip())
    if not texts:
        raise ValueError(f"{option} holds no text; give at least one.")
    if repeated := [text for i, text in enumerate(texts) if text in texts[:i]]:
        raise ValueError(f"{option} holds {repeated[0]!r} more than once.")
    return texts


def find_pictures(
    given: Sequence[str], out: Path | None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """The pictures that files, folders and globs name, each once and with a card of its own; and
    what names none, with the reason. What lies in `out`, where that is inside a given folder, was
    written by this command.
    """
    targets: list[Target] = []
    nothing: list[tuple[str, str]] = []
    seen: set[Path] = set()
    taken: set[str] = set()
    for one in given:
        found, reason = 0, "there is no such file or folder."
        for path in _matches(one):
            for file, name in _files(path, out):
                found += 1
                if (resolved := file.resolve()) not in seen:
                    seen.add(resolved)
                    targets.append(Target(file, _card_name(name, taken)))
            reason = f"the folder holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
        if not found:
            nothing.append((one, reason))
    return targets, nothing


def _matches(given: str) -> list[Path]:
    if os.path.exists(given):
        return [Path(given)]
    return [Path(match) for match in sorted(glob.glob(given, recursive=True))]


def _files(path: Path, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """The file, or every picture of the folder, with what it is called below --out."""
    if not path.is_dir():
        yield path, Path(path.name)
        return
    written = {out.resolve()} if out is not None else set()
    written -= {path.resolve(), *path.resolve().parents}  # cards beside or above are no reason
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
            continue
        if not written.intersection(file.resolve().parents):
            yield file, name


def _card_name(name: Path, taken: set[str]) -> Path:
    """A .png that no other picture has, on file systems that do not tell case either."""
    card, number = name.with_suffix(".png"), 1
    while str(card).casefold() in taken:
        number += 1
        card = name.with_name(f"{name.stem}-{number}.png")
    taken.add(str(card).casefold())
    return card


def _check_outputs(options: argparse.Namespace, targets: Sequence[Target]) -> None:
    """Refuses what would be lost or could not be written, before anything is computed."""
    files = [path for path in (options.csv, options.json) if path is not None]
    if len(files) == 2 and files[0].resolve() == files[1].resolve():
        raise ValueError(f"--csv and --json both name {str(files[0])!r}; give each its own file.")
    for path in files:
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {str(path.parent)!r}; make it first.")
    if options.out is not None:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out={options.out} is a file; needed a folder.")
        files += [options.out / target.card for target in targets]
    read = {target.file.resolve() for target in targets}
    for path in files:
        if path.resolve() in read:
            raise ValueError(f"{str(path)!r} would replace a picture to look at; change --out.")
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise ValueError(
                f"{str(path)!r} exists; give another place, or --overwrite to replace it."
            )


def _look(
    model: Model,
    targets: Sequence[Target],
    question: Question,
    options: argparse.Namespace,
    outcome: Outcome,
    messages: Console,
) -> None:
    """Fills `outcome`, one batch of pictures after the other; draws the cards."""
    columns = TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not messages.is_terminal
    with Progress(*columns, console=messages, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=len(targets))
        try:
            for start in range(0, len(targets), model.batch_size):
                batch = targets[start : start + model.batch_size]
                embedded = model.embed_images([target.file for target in batch], on_error="skip")
                for one in embedded.skipped:
                    outcome.skipped.append((one.name, one.reason))
                    text = f"Skipped {one.name}: {one.reason}"
                    messages.print(
                        text, style="yellow", markup=False, highlight=False, soft_wrap=True
                    )
                    progress.advance(task)
                left_out = {one.position for one in embedded.skipped}
                kept = [target for i, target in enumerate(batch) if i not in left_out]
                for answer in _answers(model, embedded, kept, question, options):
                    if options.out is not None:
                        _draw(answer, options.out, options.min_cosine)
                    outcome.answers.append(answer)
                    progress.advance(task)
        except KeyboardInterrupt:
            outcome.interrupted = True


def _answers(
    model: Model,
    embedded: ImageEmbeddings,
    targets: Sequence[Target],
    question: Question,
    options: argparse.Namespace,
) -> Iterator[Answer]:
    classified: Sequence[Classification | None] = [None] * len(targets)
    grounded: Sequence[Grounding | None] = [None] * len(targets)
    if not targets:
        return
    if question.labels:
        classified = model.classify(
            embedded,
            question.labels,
            question.descriptions,
            alpha=options.alpha,
            top=options.top,
            by=options.by,
            templates=question.templates,
        )
    if question.phrases:
        grounded = model.ground(embedded, question.phrases)
    for n, target in enumerate(targets):
        boxes = None if embedded.boxes_xyxy is None else embedded.boxes_xyxy[n]
        yield Answer(target, classified[n], grounded[n], boxes, embedded.view_xyxy[n])


def _draw(answer: Answer, out: Path, min_cosine: float) -> None:
    """The card: the phrases that were asked for, and what tells the best label."""
    image = decode_image(read_image_file(answer.target.file.name, answer.target.file.parent))
    height, width = image.shape[:2]
    scale = np.array([width, height, width, height], np.float32)
    seen: list[SeenText] = []
    ranked: list[tuple[str, str]] = []
    if answer.labels is not None:
        ranked = [(one.label, f"{one.probability:.1%}") for one in answer.labels.ranked]
        seen += answer.labels.ranked[0].seen
    if answer.phrases is not None:
        seen = [*answer.phrases.phrases, *seen]
    unfound = [(one.text, one.cosine) for one in seen if one.cosine < min_cosine]
    unfound, seen = list(dict.fromkeys(unfound)), list(dict.fromkeys(seen))  # asked twice
    seen = [one for one in seen if one.cosine >= min_cosine]
    queries = {one.query for one in seen}
    others = [
        box / scale
        for query, box in enumerate(() if answer.boxes_xyxy is None else answer.boxes_xyxy)
        if query not in queries
    ]
    path = out / answer.target.card
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_card(
        image,
        title=answer.target.file.name,
        answers=ranked,
        found=[
            NamedBox(np.array(one.box_xyxy, np.float32) / scale, (one.text,), one.cosine)
            for one in seen
        ],
        others_xyxy=np.array(others, np.float32).reshape(-1, 4),
        view_xyxy=answer.view_xyxy / scale,
        path=path,
        unfound=unfound,
    )


def _write(options: argparse.Namespace, question: Question, outcome: Outcome) -> None:
    """The files of --csv and --json, also of what was done before an interruption."""
    if not outcome.answers:
        return
    cards = options.out is not None
    if options.csv is not None:
        with options.csv.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, COLUMNS, restval="")
            writer.writeheader()
            for answer in outcome.answers:
                card = str(answer.target.card) if cards else ""
                for row in _rows(answer, options.min_cosine):
                    writer.writerow({"file": str(answer.target.file), "card": card} | row)
    if options.json is not None:
        asked: dict[str, Any] = dataclasses.asdict(question)
        asked |= {name: getattr(options, name) for name in ("alpha", "by", "top", "min_cosine")}
        report = {
            "checkpoint": str(options.checkpoint),
            "asked": asked,
            "pictures": [
                _entry(answer, options.min_cosine, cards=cards) for answer in outcome.answers
            ],
            "skipped": [{"file": name, "reason": reason} for name, reason in outcome.skipped],
        }
        text = json.dumps(report, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")


def _rows(answer: Answer, min_cosine: float) -> Iterator[dict[str, Any]]:
    """Lines of the table; a label comes with the description that is seen best."""
    for rank, one in enumerate(answer.labels.ranked if answer.labels else (), start=1):
        row = {"asked": "label", "rank": rank, "text": one.label, "score": f"{one.score:.6f}"}
        row["probability"] = f"{one.probability:.6f}"
        yield row | (_seen_row(one.seen[0], min_cosine) if one.seen else {})
    for seen in answer.phrases.phrases if answer.phrases else ():
        row = {"asked": "phrase", "text": seen.text, "score": f"{seen.cosine:.6f}"}
        yield row | _seen_row(seen, min_cosine)


def _seen_row(seen: SeenText, min_cosine: float) -> dict[str, str]:
    row = {"seen": seen.text, "cosine": f"{seen.cosine:.6f}"}
    if seen.cosine < min_cosine:
        return row
    corners = zip(("x0", "y0", "x1", "y1"), seen.box_xyxy, strict=True)
    return row | {name: f"{value:.1f}" for name, value in corners}


def _seen_entry(seen: SeenText, min_cosine: float) -> dict[str, Any]:
    found = {} if seen.cosine >= min_cosine else {"box_xyxy": None}
    return dataclasses.asdict(seen) | found


def _entry(answer: Answer, min_cosine: float, *, cards: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": str(answer.target.file)}
    for result in (answer.labels, answer.phrases):
        if result is not None:
            entry |= {"height": result.height, "width": result.width}
    if cards:
        entry["card"] = str(answer.target.card)
    if answer.labels is not None:
        entry["labels"] = [
            dataclasses.asdict(one) | {"seen": [_seen_entry(text, min_cosine) for text in one.seen]}
            for one in answer.labels.ranked
        ]
    if answer.phrases is not None:
        entry["phrases"] = [_seen_entry(one, min_cosine) for one in answer.phrases.phrases]
    if answer.boxes_xyxy is not None:
        entry["boxes_xyxy"] = answer.boxes_xyxy.tolist()
    return _rounded(entry)


def _rounded(value: Any) -> Any:
    """Numbers of float32 with the six digits that they have."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
    return value


def _print(outcome: Outcome, output: Console, min_cosine: float) -> None:
    """The first pictures' labels and phrases."""
    shown = outcome.answers[:MAX_SHOWN]
    names = _short_names([answer.target.file for answer in shown])
    labelled = [
        (name, answer.labels) for name, answer in zip(names, shown, strict=True) if answer.labels
    ]
    if labelled:
        table = Table("picture", "label", title="Labels", title_justify="left")
        for column in ("probability", "score"):
            table.add_column(column, justify="right")
        described = any(one.seen for _, labels in labelled for one in labels.ranked)
        if described:
            table.add_column("seen best")
        for name, labels in labelled:
            for rank, one in enumerate(labels.ranked):
                cells = ["" if rank else name, one.label]
                cells += [f"{one.probability:.1%}", f"{one.score:.3f}"]
                if described:
                    best = one.seen[0] if one.seen else None
                    cells.append(f"{best.text} ({best.cosine:.2f})" if best else "")
                table.add_row(*map(escape, cells), style=None if rank else "bold")
            table.add_section()
        output.print(table)
    phrased = [
        (name, answer.phrases) for name, answer in zip(names, shown, strict=True) if answer.phrases
    ]
    if phrased:
        table = Table("picture", "phrase", title="Phrases", title_justify="left")
        table.add_column("cosine", justify="right")
        table.add_column("box x0, y0, x1, y1, pixels")
        for name, grounding in phrased:
            for number, seen in enumerate(grounding.phrases):
                corners = ", ".join(f"{value:.0f}" for value in seen.box_xyxy)
                if seen.cosine < min_cosine:
                    corners = "not found"
                cells = ["" if number else name, seen.text, f"{seen.cosine:.2f}", corners]
                table.add_row(*map(escape, cells))
            table.add_section()
        output.print(table)
    if (more := len(outcome.answers) - len(shown)) > 0:
        output.print(f"and {more} pictures more; --csv or --json writes all.", highlight=False)


def _short_names(files: Sequence[Path]) -> list[str]:
    """The files without the folders that all of them lie in."""
    parents = [file.absolute().parent for file in files]
    shared = os.path.commonpath(parents) if parents else ""
    return [str(file.absolute().relative_to(shared)) for file in files]


def _conclude(options: argparse.Namespace, outcome: Outcome, say: Callable[..., None]) -> int:
    """Says what was done and where it is; the exit status."""
    done, skipped = len(outcome.answers), len(outcome.skipped)
    if not done:
        say("Stopped." if outcome.interrupted else "Error: no picture could be read.", style="red")
        return 130 if outcome.interrupted else 1
    places = [str(path) for path in (options.out, options.csv, options.json) if path is not None]
    where = f"; written: {', '.join(places)}" if places else ""
    left_out = f", {skipped} skipped" if skipped else ""
    stopped = "Stopped after " if outcome.interrupted else ""
    say(f"{stopped}{done} picture{'s' * (done != 1)}{left_out}{where}.")
    if outcome.interrupted:
        return 130
    return 3 if skipped else 0


if __name__ == "__main__":
    environment.restart_with_huge_pages()
    environment.cache_compilations("auto")
    sys.exit(main())
