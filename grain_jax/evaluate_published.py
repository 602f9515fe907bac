"""`--published` and `--golden` of `evaluate`: measured values beside published ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from grain_jax.command_line import ExitStatus, OptionalText, default_is, number, one_word
from grain_jax.data.classification.templates import read_templates, template_list
from grain_jax.evaluate_notes import say_error
from grain_jax.evaluation.published import (
    GOLDEN_SET,
    SOURCE,
    TOLERANCE,
    beside_published,
    golden_failure,
    known_set,
    published_table,
    read_published,
)
from grain_jax.evaluation.tables import print_table
from grain_jax.results import Result


def points(text: str) -> float:
    """Percentage points, from 0 to 100."""
    if not 0 <= (value := number(text)) <= 100:
        raise ValueError(f"{text!r} should be percentage points from 0 to 100, as in 0.2")
    return value


@dataclass(frozen=True)
class PublishedOptions:
    """What is set beside published results."""

    # published results beside ours: ViT-B-16/openai, or FILE.csv#MODEL in open_clip's form
    published: Annotated[OptionalText, arg(metavar="MODEL")] = None
    golden: bool = False  # exit status 1 unless ImageNet's accuracy is that of --published
    # of --golden, in percentage points
    tolerance: Annotated[float | None, one_word(points, "POINTS"), default_is(f"{TOLERANCE:g}")] = (
        None
    )


def check(
    options: PublishedOptions,
    *,
    sets: Sequence[str] | None,
    methods: Sequence[str],
    one_model: bool,
    templates: str | None = None,
) -> None:
    """Refuses what cannot be compared, before anything is loaded.

    `sets`: names of what is measured, None where they are not known yet; `one_model`: whether one
    checkpoint is measured once; `templates`: what --templates says, None where it says nothing.
    Raises ValueError.
    """
    if options.published is None:
        for name in ("golden", "tolerance"):
            if getattr(options, name) not in (None, False):
                raise ValueError(
                    f"--{name} goes with --published=MODEL, whose results are compared; give it "
                    "too, as in --published=ViT-B-16/openai."
                )
        return
    if options.tolerance is not None and not options.golden:
        raise ValueError("--tolerance goes with --golden; leave it out or give both.")
    if not one_model:
        raise ValueError("--published is of one model; give one --checkpoint, without --watch.")
    model = read_published(options.published)
    if not options.golden:
        return
    if sets is not None and GOLDEN_SET not in map(known_set, sets):
        raise ValueError(
            f"--golden compares ImageNet, and what is measured is called {', '.join(sets)}; give "
            "its validation images as a folder, or a link to one, called imagenet."
        )
    if "name" not in methods:
        raise ValueError(
            "--golden compares the accuracy by class name; add name to --methods, or leave it out."
        )
    clips = set(template_list("imagenet"))
    if templates and model.source == SOURCE and set(read_templates(templates)) != clips:
        raise ValueError(
            f"--golden compares ImageNet's accuracy with CLIP's 80 templates, and "
            f"--templates={templates} has others; give --templates=imagenet."
        )


def show(
    options: PublishedOptions,
    results: Sequence[Result],
    output: Console,
    messages: Console,
    note: Callable[[str], None],
) -> int:
    """Prints the table, if one is asked for; returns the exit status, 1 where --golden fails.

    Raises ValueError where --golden has no accuracy of ImageNet to compare.
    """
    if options.published is None:
        return ExitStatus.DONE
    model = read_published(options.published)
    found = beside_published(results, model)
    if found:
        print_table(published_table(found, model), output)
    measured = dict.fromkeys(r.dataset for r in results if r.metric in ("top1", "mean_R@1"))
    compared = {one.dataset for one in found}
    if missing := [name for name in measured if name not in compared]:
        note(
            f"no published results of {model.name} are of {', '.join(missing)}; sets go by the "
            "names of the suites, such as imagenet, cifar10, coco."
        )
    if not options.golden:
        return ExitStatus.DONE
    tolerance = TOLERANCE if options.tolerance is None else options.tolerance
    failure = golden_failure(found, tolerance=tolerance)
    if failure is not None:
        say_error(messages, f"--golden: {failure}.")
        return ExitStatus.STOPPED
    output.print(
        f"Golden: ImageNet's accuracy is the published one of {model.name} within {tolerance:g} "
        "points.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return ExitStatus.DONE
