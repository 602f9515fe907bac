"""Answers as tables on the screen."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grain_jax.answers.outputs import Answer
from grain_jax.inference.results import NAME, RankedLabel
from grain_jax.visualize.prediction import CERTAIN, confidence

MAX_SHOWN = 20  # images on the screen; files hold all


def print_answers(answers: Sequence[Answer], output: Console, *, score_threshold: float) -> None:
    """The first images' labels and phrases."""
    shown = answers[:MAX_SHOWN]
    names = short_names([answer.target.file for answer in shown])
    labelled = [
        (name, answer.labels) for name, answer in zip(names, shown, strict=True) if answer.labels
    ]
    if labelled:
        count = labelled[0][1].num_labels
        title = f"Labels, of {count:,}: a random guess has {1 / count:.1%}"
        table = Table("image", "label", title=title, title_justify="left")
        for column in ("probability", "score"):
            table.add_column(column, justify="right")
        described = any(one.grounded for _, labels in labelled for one in labels.ranked)
        defined = any(one.defined_by for _, labels in labelled for one in labels.ranked)
        counted = any(one.num_seen is not None for _, found in labelled for one in found.ranked)
        coverage = next((c.coverage for _, f in labelled if (c := f.calibrated) and c.coverage), 0)
        if coverage:
            table.add_column(f"in {coverage:.0%} set")
        if counted:
            table.add_column("seen", justify="right")
        if defined:
            table.add_column("defined by")
        if described:
            any_name = any(one.grounded_kind == NAME for _, k in labelled for one in k.ranked)
            table.add_column("best-matching description" + ", or name" * any_name)
        for name, labels in labelled:
            found = labels.calibrated
            none = found is not None and found.none_of_these
            if found is not None and none:
                score = f"{found.in_distribution_score:.3f} < {found.threshold:.3f}"
                table.add_row(*map(escape, (name, "none of these", "", score)), style="bold")
            for rank, one in enumerate(labels.ranked):
                cells = ["" if rank or none else name, one.label]
                cells += [f"{one.probability:.1%}", f"{one.score:.3f}"]
                if coverage:
                    inside = found is not None and one.label in (found.label_set or ())
                    cells.append("yes" if inside else "")
                if counted:
                    cells.append(seen_of(one))
                if defined:
                    cells.append(definition_of(one))
                if described:
                    cells.append(best_text_of(one))
                sure = confidence(one.probability, labels.num_labels) >= CERTAIN and not none
                table.add_row(*map(escape, cells), style="bold" if sure else None)
            table.add_section()
        output.print(table)
    phrased = [
        (name, answer.phrases) for name, answer in zip(names, shown, strict=True) if answer.phrases
    ]
    if phrased:
        table = Table("image", "phrase", title="Phrases", title_justify="left")
        table.add_column("cosine", justify="right")
        table.add_column("box x0, y0, x1, y1, pixels")
        for name, grounding in phrased:
            for number, seen in enumerate(grounding.phrases):
                corners = ", ".join(f"{value:.0f}" for value in seen.box_xyxy or ())
                if seen.cosine < score_threshold:
                    corners = "not found"
                cells = ["" if number else name, seen.text, f"{seen.cosine:.2f}", corners]
                table.add_row(*map(escape, cells))
            table.add_section()
        output.print(table)
    if (more := len(answers) - len(shown)) > 0:
        output.print(f"and {more} images more; --csv or --json writes all.", highlight=False)


def best_text_of(label: RankedLabel) -> str:
    """Its best-matching description with the cosine, or after "name: " the name or prompt that it
    was compared by; "" where it was compared with no such text.
    """
    if not label.grounded:
        return ""
    best = label.grounded[0]
    marked = "name: " if label.grounded_kind == NAME else ""
    return f"{marked}{best.text} ({best.cosine:.2f})"


def seen_of(label: RankedLabel) -> str:
    """How many of its descriptions are seen, "4 of 6"; "" where that is not known."""
    return "" if label.num_seen is None else f"{label.num_seen} of {len(label.grounded)}"


def definition_of(label: RankedLabel) -> str:
    """ "texts", "4 examples" or "texts and 4 examples"."""
    count = label.num_examples or 0
    examples = f"{count} example{'s' * (count != 1)}"
    known = {"texts": "texts", "examples": examples, "both": f"texts and {examples}"}
    return known.get(label.defined_by or "", "")


def short_names(files: Sequence[Path]) -> list[str]:
    """The files without the folders that all of them lie in."""
    parents = [file.absolute().parent for file in files]
    shared = os.path.commonpath(parents) if parents else ""
    return [str(file.absolute().relative_to(shared)) for file in files]
