"""Flat results as tables that say what they mean, for the terminal and for the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rich.console
import rich.markup
import rich.table
from rich.measure import Measurement

from grain_jax.evaluation.retrieval import KS
from grain_jax.visualize.curves import read_metrics
from grain_jax.zero_shot.methods import DESCRIPTIONS, METHODS, REGIONS

Results = Mapping[str, float]
UNDESCRIBED = " Classes without descriptions are scored by their name in every row."
UNBROKEN = 10_000  # columns: more than any table has
METHOD_TITLES = {  # in the order of the rows; another method goes by its key
    "name": "name",
    "description": "description",
    "name_and_regions": "name + regions",
}


@dataclass(frozen=True)
class Table:
    """Cells are text; every row is as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    meaning: str  # one or two sentences: how to read it

    def markdown(self) -> str:
        """As a section of a Markdown page."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{self.meaning}\n\n{body}\n"


def result_tables(results: Results) -> list[Table]:
    """What there is among zero-shot classification, grounding and retrieval; in percent."""
    found = (_zero_shot(results), _grounding(results), _retrieval(results))
    return [table for table in found if table.rows]


def metrics_at_step(metrics_file: Path, step: int) -> str:
    """Markdown: what a run logged at `step`, as tables; a sentence where it logged nothing."""
    logged = [entry for entry in read_metrics(metrics_file) if entry["step"] == step]
    results = {
        name: value for entry in logged for name, value in entry.items() if isinstance(value, float)
    }
    if not (tables := result_tables(results)):
        return f"None were measured at step {step:,}.\n"
    sentence = headline(results)
    found = [f"**{sentence}**\n"] if sentence else []
    found.append(f"At step {step:,}, by the JAX model, as its run logged them.\n")
    return "\n".join([*found, *(table.markdown() for table in tables)])


def print_results(results: Results, console: rich.console.Console) -> None:
    """The tables and the headline; on a terminal in its width, in a file or pipe never broken."""
    for content in result_tables(results):
        table = rich.table.Table(title=content.title, title_justify="left")
        for number, column in enumerate(content.columns):
            table.add_column(column, justify="left" if number < 2 else "right")
        for row in content.rows:
            table.add_row(*(rich.markup.escape(cell) for cell in row))
        if console.is_terminal:
            console.print(table)
        else:
            wide = console.options.update(max_width=UNBROKEN)
            table.width = Measurement.get(console, wide, table).maximum
            console.print(table, crop=False)
        console.print(content.meaning + "\n", style="dim", markup=False, highlight=False)
    if sentence := headline(results):
        console.print(sentence, style="bold", highlight=False)


def headline(results: Results) -> str:
    """One sentence about unseen species, "" where there are none."""
    if "headline/alpha" not in results:
        return ""
    return (
        f"Unseen species by description: {_percent(results['headline/unseen_by_description'])} % "
        f"at alpha = {results['headline/alpha']:g}, the best alpha on the validation species "
        f"(random {_random(results, 'unseen')} %)."
    )


def _zero_shot(results: Results) -> Table:
    alphas = sorted(
        {key.partition("/alpha")[2].partition("/")[0] for key in results if "/alpha" in key} - {""}
        | {"1"},
        key=float,
        reverse=True,
    )
    rows = []
    for name in (key.removesuffix("/random") for key in results if key.endswith("/random")):
        for method in {**METHOD_TITLES, **METHODS}:
            ends = [f"{name}/{method}/alpha{alpha}" for alpha in alphas]
            if f"{name}/{method}" in results:  # without an alpha: of the whole image only
                ends = [f"{name}/{method}" if alpha == "1" else "" for alpha in alphas]
            if any(key in results for key in ends):
                cells = [_accuracy(results, key) for key in ends]
                described = METHODS[method].texts & {DESCRIPTIONS, REGIONS}
                title = METHOD_TITLES.get(method, method)
                title += _described(results, name) if described else ""
                rows.append((_set_title(results, name), title, *cells, _random(results, name)))
    return Table(
        "Zero-shot classification: top-1 accuracy, %",
        ("set", "method", *(f"alpha = {alpha}" for alpha in alphas), "random"),
        tuple(rows),
        "Alpha is the weight of the global score: at 1 the image embedding decides alone, as in "
        "CLIP, at 0 the regions do. By description means without the name. "
        + ("Names of unseen species were never heard. " if "unseen/random" in results else "")
        + "With the half width of the 95 % interval (Wilson, over images)."
        + (UNDESCRIBED if any("described)" in row[1] for row in rows) else ""),
    )


def _set_title(results: Results, name: str) -> str:
    if f"{name}/classes" not in results:
        return name
    return f"{name} ({results[f'{name}/classes']:g} classes)"


def _described(results: Results, name: str) -> str:
    """How many classes have descriptions, where not all of them do."""
    without = results.get(f"{name}/undescribed_classes", 0)
    if not without:
        return ""
    classes = results[f"{name}/classes"]
    return f" ({classes - without:g} of {classes:g} described)"


def _random(results: Results, name: str) -> str:
    return _percent(results[f"{name}/random"])


def _accuracy(results: Results, key: str) -> str:
    if key not in results:
        return "-"
    if f"{key}/low" not in results:
        return _percent(results[key])
    half = (results[f"{key}/high"] - results[f"{key}/low"]) / 2
    return f"{_percent(results[key])} ± {_percent(half)}"


def _grounding(results: Results) -> Table:
    rows = []
    for name in (key.removesuffix("/box_iou") for key in results if key.endswith("/box_iou")):
        for who, start in (
            ("model", ""),
            ("constant boxes", "constant_"),
            ("median box of each part", "part_"),
        ):
            keys = [f"{name}/{start}{m}" for m in ("box_iou", "box_recall", "phrase_accuracy")]
            if keys[0] in results:
                upper_bound = results[f"{name}/box_recall_upper_bound"]
                rows.append(
                    (name, who, *(_percent(results[k]) for k in keys), _percent(upper_bound))
                )
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
        "fitted to training boxes, and with parts they know which part a phrase speaks of.",
    )


def _retrieval(results: Results) -> Table:
    marker, ends = "/retrieval/mean_R@1", [f"R@{k}" for k in KS]
    rows = []
    for name in (key.removesuffix(marker) for key in results if key.endswith(marker)):
        images, texts = (results[f"{name}/retrieval/{what}"] for what in ("images", "texts"))
        for direction, title in (
            ("image_to_text", f"{images:g} images to their texts"),
            ("text_to_image", f"{texts:g} texts to their images"),
        ):
            keys = [f"{name}/retrieval/{direction}/{end}" for end in (*ends, "random_R@1")]
            rows.append((name, title, *(_percent(results[key]) for key in keys)))
    return Table(
        "Retrieval: recall, %",
        ("split", "from", *ends, "random R@1"),
        tuple(rows),
        "An image has found its text when any of its captions is among the k best of all texts; a "
        "text its image, when an image that carries it is. Equal texts count as one.",
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
