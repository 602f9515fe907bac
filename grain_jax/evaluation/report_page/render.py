"""A report as HTML, Markdown or CSV."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from grain_jax.evaluation.report_page.classes import class_grids, paired_grids, pairings
from grain_jax.evaluation.report_page.content import (
    Block,
    Cell,
    Gallery,
    Grid,
    Plot,
    ReliabilityPlot,
    Section,
    ShownImage,
)
from grain_jax.evaluation.report_page.evaluations import Evaluation
from grain_jax.evaluation.report_page.gallery import galleries
from grain_jax.evaluation.report_page.left_out import left_out_grid
from grain_jax.evaluation.report_page.plots import accuracy_plots, reliability
from grain_jax.evaluation.report_page.protocols import (
    compositional_grid,
    is_of_protocol,
    protocol_grids,
)
from grain_jax.evaluation.report_page.short_list import ShortList
from grain_jax.evaluation.report_page.tables import (
    COSTS,
    facts_tables,
    grounding_grid,
    other_grid,
    retrieval_grid,
    texts_table,
    zero_shot_grids,
)
from grain_jax.results import FIELDS

SUFFIXES = (".html", ".md", ".csv")
OF_FILE = ("evaluation", "file", "checkpoint", "step", "data", "split", "inputs_sha256")
NO_ANSWERS = "What single answers say (classes, pairs, differences) needs --predictions."


def check_output(path: Path) -> None:
    """Raises ValueError for another suffix."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--output={path} should end in {', '.join(SUFFIXES[:-1])} or .csv.")


def report_sections(
    evaluations: Sequence[Evaluation],
    images: Mapping[str, Path],
    *,
    against: str,
    seed: int = 0,
    all_methods: bool = False,
) -> list[Section]:
    """All of the report; without `all_methods` plots and tables of classes of a short list. Raises
    ValueError as `galleries` does.
    """
    listed = ShortList(evaluations, every=all_methods)
    pairs = pairings(evaluations, against)
    differences, left_out = paired_grids(pairs, listed, seed=seed)
    shown, missing = galleries(evaluations, images)
    of_answers = [*differences, *class_grids(evaluations, listed)]
    answered = any(one.answers for one in evaluations)
    what, how = facts_tables(evaluations)
    sections = [
        Section("What was measured", _given(what, texts_table(evaluations), how)),
        Section(
            "Zero-shot classification",
            (
                *zero_shot_grids(evaluations),
                *_given(left_out_grid(evaluations)),
                *accuracy_plots(evaluations, listed),
            ),
            tuple(listed.notes),
        ),
        Section(
            "Classes and paired answers",
            tuple(of_answers),
            (*left_out, *(() if answered else (NO_ANSWERS,))),
        ),
        Section("Probabilities", tuple(reliability(evaluations, listed))),
        Section("Retrieval", _given(retrieval_grid(evaluations))),
        Section(
            "Grounding",
            _given(grounding_grid(evaluations), *protocol_grids(evaluations), *shown),
            tuple(missing),
        ),
        Section("Composition", _given(compositional_grid(evaluations))),
        Section("Further results", _given(other_grid(evaluations, elsewhere=is_of_protocol))),
    ]
    return [section for section in sections if section.blocks or section.notes]


def _given(*blocks: Block | None) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block is not None)


def page_title(evaluations: Sequence[Evaluation]) -> str:
    """ "Evaluation of A: demo, step 2500; B: ..."."""
    names = [f"{one.letter}: {one.name}" for one in evaluations]
    return f"Evaluation of {evaluations[0].name if len(names) == 1 else '; '.join(names)}"


def html_page(title: str, sections: Sequence[Section]) -> str:
    """One file that loads nothing. Every text is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests |= {
        name: lambda block, kind=kind: isinstance(block, kind)
        for name, kind in (
            ("grid", Grid),
            ("plot", Plot),
            ("reliability", ReliabilityPlot),
            ("gallery", Gallery),
        )
    }
    template = environment.from_string(_part("page.html"))
    return template.render(title=title, sections=sections, style=_part("page.css"))


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """The same as Markdown, plots as tables; of galleries the texts."""
    return "\n".join(_markdown(title, sections)).rstrip() + "\n"


def _markdown(title: str, sections: Sequence[Section]) -> Iterator[str]:
    yield f"# {_escaped(title)}\n"
    for section in sections:
        yield f"## {section.title}\n"
        for note in section.notes:
            yield f"- {_escaped(note)}"
        if section.notes:
            yield ""
        for block in section.blocks:
            if isinstance(block, Grid):
                yield from _markdown_grid(block)
            elif isinstance(block, Gallery):
                yield f"### {_escaped(block.title)}\n"
                for image in block.images:
                    yield from _markdown_image(image)


def _markdown_grid(grid: Grid) -> Iterator[str]:
    yield f"### {_escaped(grid.title)}\n"
    if grid.meaning:
        yield f"{_escaped(grid.meaning)}\n"
    yield "| " + " | ".join(map(_escaped, grid.heads)) + " |"
    numbers = len(grid.columns) - grid.num_texts
    yield "|" + " --- |" * grid.num_texts + " ---: |" * numbers
    for row in grid.rows:
        yield "| " + " | ".join(_escaped(_cell_text(cell)) for cell in row) + " |"
    yield ""


def _cell_text(cell: Cell) -> str:
    interval = f" ({cell.interval})" if cell.interval else ""
    spread = f" ({cell.spread})" if cell.spread else ""
    return f"{cell.text}{interval}{spread}" + (f", {cell.mark}" if cell.mark else "")


def _markdown_image(image: ShownImage) -> Iterator[str]:
    yield f"- {image.heading}: {_escaped(image.name)}, mean IoU {image.iou:.2f}"
    for phrase in image.phrases:
        verdict = "right" if phrase.right else "wrong"
        yield f"  - {_escaped(phrase.text)}: IoU {phrase.iou:.2f}, {verdict}"
    yield ""


def _escaped(text: str) -> str:
    """The text with what Markdown or HTML would take for markup escaped, on one line. An underscore
    within a word, as in a method's key, is none.
    """
    return re.sub(r"[\\`*\[\]<>|#&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.split()))


def csv_table(evaluations: Sequence[Evaluation]) -> str:
    """All records, each with what its file is about and its method costs; an empty cell for what
    is not known.
    """
    written = io.StringIO()
    table = csv.DictWriter(written, (*OF_FILE, *FIELDS, *COSTS), restval="", lineterminator="\n")
    table.writeheader()
    for one in evaluations:
        about = {
            "evaluation": one.letter,
            "file": str(one.file),
            **{name: one.report.get(name) for name in OF_FILE[2:]},
        }
        for result in one.results:
            costs = {what: one.cost(result.dataset, result.method, what) for what in COSTS}
            table.writerow(about | asdict(result) | costs)
    return written.getvalue()
