"""Results as tables that say what they mean, for the terminal and for the report."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rich.console
import rich.markup
import rich.table
from rich.cells import cell_len

from grain_jax.evaluation.percentages import MISSING, percent, result_text
from grain_jax.evaluation.retrieval import IMAGE_TO_TEXT, KS, TEXT_TO_IMAGE
from grain_jax.results import BY_FREQUENCY, DRAW, SPREAD_OF_DRAWS, Result, read_results
from grain_jax.zero_shot.methods import METHODS, drawn_methods, titled
from grain_jax.zero_shot.text_kinds import OF_DESCRIPTIONS

UNDESCRIBED = " Classes without descriptions are scored by their name in every row."
MEAN_OF_DRAWS = (
    " Of random texts and crops the mean over draws, with its standard deviation over them (sd) "
    "behind it."
)
ONE_DRAW = " Random texts and crops are drawn once: others have other figures (--text_draws)."
OF_DRAWS = frozenset(drawn_methods(METHODS))
TEXT_COLUMNS = 2  # the first ones of a table; the others are numbers
FOLDED = 12  # columns that a text can be folded to and still be read
# Columns of numbers that say what was measured on, not how well.
CONTEXT = ("random", "random R@1", "recall upper bound", "metric", "images", "queries")
MAX_WORD = 28  # columns: a longer word, such as a path, is broken
SENTENCE_ENDS = re.compile(r"(?<=\.) (?=[A-Z])")
PREDICTORS = {
    "model": "model",
    "constant_boxes": "constant_boxes",
    "part_boxes": "part_boxes: median box of each part",
}
RETRIEVED = {
    IMAGE_TO_TEXT: f"{IMAGE_TO_TEXT}: {{images}} images to their texts",
    TEXT_TO_IMAGE: f"{TEXT_TO_IMAGE}: {{texts}} texts to their images",
}


@dataclass(frozen=True)
class Table:
    """Cells are text; every row is as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    meaning: str  # one or two sentences: how to read it
    num_texts: int = TEXT_COLUMNS

    def markdown(self) -> str:
        """As a section of a Markdown page."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{self.meaning}\n\n{body}\n"


def result_tables(results: Sequence[Result]) -> list[Table]:
    """What there is among zero-shot classification, grounding and retrieval; in percent."""
    found = (
        _zero_shot(results),
        _by_frequency(results),
        _grounding(results),
        _retrieval(results),
    )
    return [table for table in found if table.rows]


def results_at_step(run: Path, step: int, *, headline: Callable[[Sequence[Result]], str]) -> str:
    """Markdown: what a run folder logged at `step`, as tables; a sentence where it logged nothing.

    `headline` is that of the run's data source.
    """
    results = read_results(run).get(step, [])
    if not (tables := result_tables(results)):
        return f"None were measured at step {step:,}.\n"
    sentence = headline(results)
    found = [f"**{sentence}**\n"] if sentence else []
    found.append(f"At step {step:,}, by the JAX model, as its run logged them.\n")
    return "\n".join([*found, *(table.markdown() for table in tables)])


def print_results(
    results: Sequence[Result],
    console: rich.console.Console,
    *,
    headline: str = "",
    said: set[str] | None = None,
) -> None:
    """The tables and the headline, in the width of the console.

    `said`: sentences below earlier tables, which are not repeated; those of these are added.
    """
    said = set() if said is None else said
    for content in result_tables(results):
        print_table(content, console, said=said)
    if headline:
        console.print(headline, style="bold", highlight=False)


def print_table(
    content: Table, console: rich.console.Console, *, said: set[str] | None = None
) -> None:
    """A table and what it means, in the width of the console.

    A column that has the same in all rows is said once above it. Where it is too wide, texts are
    folded and intervals stand below their values; where that is not enough, each set has a table of
    its own, and then each number a line. `said` as in `print_results`.
    """
    console.print(content.title, style="table.title", markup=False, highlight=False)
    for part in _parts(content, console.width):
        narrow, alike = without_equal_columns(part)
        if alike:
            console.print(f"In all rows: {'; '.join(alike)}.", markup=False, highlight=False)
        console.print(_drawn(_fitted(narrow, console.width) or _a_line_each(narrow)))
    said = set() if said is None else said
    sentences = [one for one in SENTENCE_ENDS.split(content.meaning) if one not in said]
    said |= set(sentences)
    if sentences:
        console.print(" ".join(sentences), style="dim", markup=False, highlight=False)
    console.print()


def _parts(content: Table, width: int) -> list[Table]:
    """The table; where it fits in no form, one for each value of its first column, if there are two
    columns of texts and each value has several rows.
    """
    narrow, _ = without_equal_columns(content)
    rows: dict[str, list[tuple[str, ...]]] = {}
    for row in content.rows:
        rows.setdefault(row[0], []).append(row)
    splits = narrow.num_texts > 1 and min(map(len, rows.values()), default=0) > 1
    if not splits or _fitted(narrow, width) is not None:
        return [content]
    return [replace(content, rows=tuple(own)) for own in rows.values()]


def _fitted(content: Table, width: int) -> Table | None:
    """The table as it is, or with intervals below their values; None where neither fits."""
    if _narrowest(content) <= width:
        return content
    stacked = _stacked(content)
    return stacked if _narrowest(stacked) <= width else None


def without_equal_columns(content: Table) -> tuple[Table, list[str]]:
    """The table without columns that have the same in all of several rows, and what these have, as
    "random 4.0". They are texts, numbers that are `CONTEXT`, or nothing at all; a column of texts
    stays.
    """
    columns = list(zip(*content.rows, strict=True))
    equal = [
        len(cells) > 1
        and len(set(cells)) == 1
        and (number < content.num_texts or title in CONTEXT or cells[0] == MISSING)
        for number, (title, cells) in enumerate(zip(content.columns, columns, strict=True))
    ]
    if columns and all(equal[: content.num_texts]):
        equal[content.num_texts - 1] = False
    alike = [
        f"{title} {cells[0]}"
        for title, cells, same in zip(content.columns, columns, equal, strict=True)
        if same and cells[0]
    ]
    if not any(equal):
        return content, []
    kept = [number for number, same in enumerate(equal) if not same]
    made = replace(
        content,
        columns=tuple(content.columns[number] for number in kept),
        rows=tuple(tuple(row[number] for number in kept) for row in content.rows),
        num_texts=sum(number < content.num_texts for number in kept),
    )
    return made, alike


def _drawn(content: Table) -> rich.table.Table:
    table = rich.table.Table()
    for number, column in enumerate(content.columns):
        if number < content.num_texts:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in content.rows:
        table.add_row(*(rich.markup.escape(cell) for cell in row))
    return table


def _stacked(content: Table) -> Table:
    texts = content.num_texts
    rows = tuple(
        (*row[:texts], *(cell.replace(" (", "\n(") for cell in row[texts:])) for row in content.rows
    )
    return replace(content, rows=rows)


def _narrowest(content: Table) -> int:
    """Columns of a terminal that it needs, with texts folded between words."""
    width = 1
    for number, cells in enumerate(zip(content.columns, *content.rows, strict=True)):
        lines = [line for cell in cells for line in cell.split("\n")]
        longest = max(map(cell_len, lines))
        if number < content.num_texts:
            words = max(cell_len(word) for line in lines for word in (line.split() or ("",)))
            longest = min(longest, max(FOLDED, min(words, MAX_WORD)))
        width += 3 + longest
    return width


def _a_line_each(content: Table) -> Table:
    rows, texts = [], content.num_texts
    for row in content.rows:
        text = " / ".join(row[:texts])
        numbers = range(texts, len(row))
        for number in [k for k in numbers if row[k] != MISSING] or numbers:
            rows.append((text, content.columns[number], row[number]))
            text = ""
    columns = (" / ".join(content.columns[:texts]), "", "")
    return replace(content, columns=columns, rows=tuple(rows), num_texts=TEXT_COLUMNS)


Get = Callable[[str, str, str, float | None], Result | None]  # of set, method, metric and alpha


class ResultIndex:
    """Results by data set, method, alpha and metric."""

    def __init__(self, results: Sequence[Result]):
        self._found = {(r.dataset, r.method, r.alpha, r.metric): r for r in results}

    def get(
        self, dataset: str, method: str, metric: str, alpha: float | None = None
    ) -> Result | None:
        """The record of one metric."""
        return self._found.get((dataset, method, alpha, metric))

    def percent(self, dataset: str, method: str, metric: str) -> str:
        found = self.get(dataset, method, metric)
        return percent(None if found is None else found.value)

    def datasets(self, method: str, metric: str) -> list[str]:
        """Those with a result of the kind, in order."""
        kinds = {(dataset, of, what): None for dataset, of, _, what in self._found}
        return [dataset for dataset, *kind in kinds if kind == [method, metric]]


def _zero_shot(results: Sequence[Result]) -> Table:
    index, rows = ResultIndex(results), []
    alphas = {r.alpha for r in results if r.metric == "top1" and r.alpha is not None} | {1.0}
    columns = sorted(alphas, reverse=True)
    for name in index.datasets("random", "top1"):
        for method in METHODS:
            found = [index.get(name, method, "top1", alpha) for alpha in columns]
            if (whole := index.get(name, method, "top1")) is not None:  # no regions, so no alpha
                found = [whole if alpha == 1 else None for alpha in columns]
            if any(found):
                title = method_title(method) + described(index.get, name, method)
                title += _passes(index, name, method)
                cells = [with_draws(index.get, result) for result in found]
                random = index.percent(name, "random", "top1")
                rows.append((_set_title(index, name), title, *cells, random))
    return Table(
        "Zero-shot classification: top-1 accuracy, %",
        ("set", "method", *(f"alpha = {alpha:g}" for alpha in columns), "random"),
        tuple(rows),
        "Alpha is the weight of the global score: at 1 the image embedding decides alone, as in "
        "CLIP, at 0 the regions do. By description means without the name. "
        "In brackets the 95 % interval (Wilson, over images)."
        + (UNDESCRIBED if any("described)" in row[1] for row in rows) else "")
        + draws_sentence([(index.get, results)]),
    )


def _by_frequency(results: Sequence[Result]) -> Table:
    index, rows = ResultIndex(results), []
    found = {(r.dataset, r.method, r.alpha): None for r in results if r.metric in BY_FREQUENCY}
    for name, method, alpha in found:
        cells = [index.get(name, method, metric, alpha) for metric in BY_FREQUENCY]
        title = method_title(method)
        title += "" if alpha is None else f", alpha = {alpha:g}"
        shown = ["-" if one is None else f"{result_text(one)} of {one.n:,}" for one in cells]
        rows.append((_set_title(index, name), title, *shown))
    return Table(
        "Zero-shot classification by how often a class occurs in training captions: top-1, %",
        ("set", "method", "unseen", "rare", "frequent"),
        tuple(rows),
        "Unseen classes occur in no caption; of the others the rarer half is rare. In brackets "
        "the 95 % interval, then the number of images. All classes can be chosen.",
    )


def method_title(name: str) -> str:
    """What tables call a method; one that is not known goes by its key."""
    return titled(name) if name in METHODS else name


def _set_title(index: ResultIndex, name: str) -> str:
    classes = index.get(name, "dataset", "classes")
    return name if classes is None else f"{name} ({classes.value:g} classes)"


def described(get: Get, name: str, method: str) -> str:
    """How many classes of a set have descriptions, where a method takes them and not all have."""
    if method not in METHODS or not METHODS[method].texts & OF_DESCRIPTIONS:
        return ""
    without = get(name, "dataset", "undescribed_classes", None)
    classes = get(name, "dataset", "classes", None)
    if without is None or classes is None or not without.value:
        return ""
    return f" ({classes.value - without.value:g} of {classes.value:g} described)"


def _passes(index: ResultIndex, name: str, method: str) -> str:
    """What a method with a second pass costs; "" for those that see an image's embedding."""
    found = index.get(name, method, "passes")
    return "" if found is None else f", encodes each image {found.value:g} times"


def with_draws(get: Get, result: Result | None) -> str:
    """ "61.3 (58.1-64.2) (sd 1.2, 7 draws)": `result_text` and the spread, where there is one."""
    spread = spread_of_draws(get, result)
    return result_text(result) + (f" ({spread})" if spread else "")


def spread_of_draws(get: Get, result: Result | None) -> str:
    """ "sd 1.2, 7 draws" of a top-1 accuracy by random texts that were drawn several times; "" for
    others.
    """
    if result is None or result.metric != "top1":
        return ""
    of = result.dataset, result.method
    spread = get(*of, SPREAD_OF_DRAWS, result.alpha)
    if spread is None:
        return ""
    every = (get(*of, f"{DRAW}{draw}", result.alpha) for draw in itertools.count())
    count = sum(1 for _ in itertools.takewhile(lambda one: one is not None, every))
    return f"sd {percent(spread.value)}, {count} draws"


def draws_sentence(every: Iterable[tuple[Get, Sequence[Result]]]) -> str:
    """Whether top-1 accuracies by random texts and crops are means over draws; "" without any."""
    found = {
        bool(spread_of_draws(get, result))
        for get, results in every
        for result in results
        if result.metric == "top1" and result.method in OF_DRAWS
    }
    return (MEAN_OF_DRAWS if True in found else "") + (ONE_DRAW if False in found else "")


def _grounding(results: Sequence[Result]) -> Table:
    index, rows = ResultIndex(results), []
    for name in index.datasets("model", "box_iou"):
        upper_bound = index.percent(name, "model", "box_recall_upper_bound")
        for method, title in PREDICTORS.items():
            if index.get(name, method, "box_iou") is not None:
                metrics = ("box_iou", "box_recall", "phrase_accuracy")
                cells = [result_text(index.get(name, method, metric)) for metric in metrics]
                rows.append((name, title, *cells, upper_bound))
    return Table(
        "Grounding, %",
        (
            "split",
            "predictor",
            "mean IoU",
            "recall@0.5",
            "Acc@0.5",
            "recall upper bound",
        ),
        tuple(rows),
        "Every true box is matched one-to-one with a predicted one (best total IoU): mean IoU, and "
        "recall of boxes with IoU of at least 0.5, at most its upper bound where images have more "
        "boxes than the model has queries. Acc@0.5: the query most similar to a phrase "
        "has a box that overlaps one of the phrase's. Constant boxes see no image and are "
        "fitted to training boxes, and with parts they know which part a phrase speaks of. "
        "In brackets the 95 % interval (bootstrap over images).",
    )


def _retrieval(results: Sequence[Result]) -> Table:
    index, rows = ResultIndex(results), []
    metrics = (*(f"R@{k}" for k in KS), "random_R@1")
    for name in index.datasets("retrieval", "mean_R@1"):
        for method, title in RETRIEVED.items():
            counts = (index.get(name, "retrieval", what) for what in ("images", "texts"))
            images, texts = (f"{count.value:g}" if count else "?" for count in counts)
            cells = [result_text(index.get(name, method, metric)) for metric in metrics]
            rows.append((name, title.format(images=images, texts=texts), *cells))
    return Table(
        "Retrieval: recall, %",
        ("split", "from", *(f"R@{k}" for k in KS), "random R@1"),
        tuple(rows),
        "An image has found its text when any of its captions is among the k best of all texts; a "
        "text its image, when an image that carries it is. Equal texts count as one. "
        "In brackets the 95 % interval (bootstrap over images).",
    )
