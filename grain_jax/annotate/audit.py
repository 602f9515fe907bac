"""Find the faults of annotations, and drop, keep or send back what has them.

  python -m grain_jax.annotate audit --annotations=ANN
  python -m grain_jax.annotate audit --annotations=ANN --drop=refusal,absence,truncated

Without --drop, --retry and --keep it only reports. Decisions are rows of their own, which
`prepare --from=annotations` honours; --keep takes back what was decided about a fault. Images that
--retry sends back are described again by the next `annotate describe`, and looked for by `annotate
ground`; the same --retry after it keeps the better of both.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotate.stage import ROWS_KEPT
from grain_jax.annotation.audit.decide import Request
from grain_jax.annotation.audit.faults import FAULTS, Limits
from grain_jax.annotation.audit.report import AuditReport, audit
from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalPath,
    RequiredPath,
    default_is,
    fraction,
    one_word,
    parse,
    print_error,
    progress_bar,
)
from grain_jax.disk import whole_file

ACTIONS = {
    "drop": "dropped",
    "retry": "sent back to describe",
    "kept_newer": "described again, and the newer kept",
    "kept_earlier": "described again, and the earlier kept",
}
MAX_TEXT = 120  # characters of an example


def _faults(text: str) -> frozenset[str]:
    found = frozenset(part.strip() for part in text.split(","))
    if unknown := sorted(found - FAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is not a fault; expected some of {', '.join(FAULTS)}")
    return found


Faults = Annotated[frozenset[str], one_word(_faults, "FAULT,..."), default_is("none")]
Fraction = Annotated[float, one_word(fraction, "X")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `annotate audit` takes."""

    annotations: Annotated[RequiredPath, arg(metavar="ANN")]  # folder of annotations
    # folder of the images, to find those that were changed since they were annotated
    images: Annotated[OptionalPath, arg(metavar="DIR")] = None
    drop: Faults = frozenset()  # leave out what has these faults
    retry: Faults = frozenset()  # send images with these faults back to `describe`, keep the better
    keep: Faults = frozenset()  # take back all decisions on these faults
    json: Annotated[OptionalPath, arg(metavar="FILE")] = None  # the report, with its examples
    min_repeats: Count = Limits.min_repeats  # images from which a text counts as repeated
    # best score of a description below which no box explains it
    min_score: Fraction = Limits.min_score
    # fraction of the image from which a box covers all of it
    max_area: Fraction = Limits.max_area
    max_retries: Count = 1  # how often an image is sent back
    examples: Count = 5  # of each fault


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        options = parse(Options, arguments, command="annotate audit", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    console = Console(stderr=True)
    try:
        report = _run(options, console)
        if options.json is not None:
            _write_json(report, options.json)
    except (ValueError, OSError, ImportError) as error:
        return print_error(error, console, folder=options.annotations, kept=ROWS_KEPT)
    except KeyboardInterrupt:
        console.print(f"Stopped. The same command continues; {ROWS_KEPT}.")
        return ExitStatus.INTERRUPTED
    print_report(report, options.annotations, Console())
    return ExitStatus.DONE


def _run(options: Options, console: Console) -> AuditReport:
    if options.images is not None and not options.images.is_dir():
        raise ValueError(f"--images={options.images} is not a folder.")
    request = Request(
        drop=options.drop,
        retry=options.retry,
        keep=options.keep,
        limits=Limits(options.min_repeats, options.min_score, options.max_area),
        max_retries=options.max_retries,
    )

    def note(text: str) -> None:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    with progress_bar(console, "audit", state="counting texts") as advance:

        def show(report: AuditReport) -> None:
            advance(report.audited, report.images, f"{report.with_faults:,} with faults")

        return audit(
            options.annotations,
            request,
            images=options.images,
            max_examples=options.examples,
            progress=show,
            note=note,
        )


def _write_json(report: AuditReport, path: Path) -> None:
    with whole_file(path) as partial:
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def print_report(report: AuditReport, folder: Path, console: Console) -> None:
    """Prints how often each fault was found, examples of it, and what is decided."""
    table = Table(title=escape(str(folder)))
    for name in ("fault", "what it is"):
        table.add_column(name)
    for name in ("images", "findings"):
        table.add_column(name, justify="right")
    for name, fault in report.faults.items():
        counts = (f"{fault.images:,}", f"{fault.findings:,}")
        looked = report.looks_for(name)
        table.add_row(name, FAULTS[name].title, *(counts if looked else ("needs", "--images")))
    console.print(table)
    for line in (*_examples(report), *_decisions(report)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _examples(report: AuditReport) -> list[str]:
    lines = []
    for name, fault in report.faults.items():
        for image, finding in fault.examples:
            text = finding.text if len(finding.text) <= MAX_TEXT else f"{finding.text[:MAX_TEXT]}…"
            parts = [image, *([f'"{text}"'] if text else []), *filter(None, [finding.detail])]
            lines.append(f"  {name}: {', '.join(parts)}")
    return lines


def _decisions(report: AuditReport) -> list[str]:
    lines = [f"{report.with_faults:,} of {report.images:,} images have a fault."]
    for name, fault in report.faults.items():
        for action, said in ACTIONS.items():
            if images := fault.actions[action]:
                lines.append(f"{name}: {said} in {images:,} images")
    if report.request.faults:
        lines.append(f"The decisions on {report.decided:,} images changed.")
    if any(fault.actions["retry"] for fault in report.faults.values()):
        lines.append(
            "Run `annotate describe`, with another model, other prompts or a --temperature, and "
            "`annotate ground`; the same --retry then keeps the better."
        )
    if report.waiting:
        lines.append(
            f"{report.waiting:,} images were described again and not grounded yet; run `annotate "
            "ground` before the better is kept."
        )
    if report.outdated:
        lines.append(
            f"{report.outdated:,} images have decisions about rows that were made anew since; they "
            "do not count. Give --drop, --retry or `annotate review` again."
        )
    return lines
