r"""Zero-shot metrics of a checkpoint by CLIP_benchmark, to check ours with another harness.

  python -m grain_jax.evaluate clip_benchmark --checkpoint=RUN -- --dataset=wds/SET \
    --dataset_root=FOLDER

What follows `--` are options of `clip_benchmark eval`, which loads the images, asks the model for
embeddings and computes the metrics. It has to be installed, with PyTorch and torchvision:
`docs/evaluation.md`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from tyro.conf import arg

from grain_jax.command_line import Best, ExitStatus, NotParsed, RunPath, Step, parse
from grain_jax.evaluate_notes import say_end
from grain_jax.harnesses.clip_benchmark_model import (
    MODEL_TYPE,
    check_accuracy,
    import_harness,
    register,
)
from grain_jax.terminal import escape_unprintable

COMMAND = "evaluate clip_benchmark"
TAKEN = ("--model_type", "--model", "--pretrained", "--pretrained_model")  # said by --checkpoint
# Without half precision, which would round cosines that are float32 here, and without loader
# processes, which would be forks of one that runs JAX.
DEFAULTS = ("--no_amp", "--num_workers=0")


@dataclass(frozen=True)
class Options:
    """What `evaluate clip_benchmark` takes before `--`."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept


def main(arguments: Sequence[str]) -> int:
    """The command, without the word `clip_benchmark`; returns its exit status."""
    escape_unprintable()
    messages = Console(stderr=True)
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    try:
        if at == len(words) and any(word.startswith("--dataset") for word in words):
            raise ValueError(
                "CLIP_benchmark's options stand behind `--`: --checkpoint=RUN -- --dataset=wds/SET "
                "--dataset_root=FOLDER"
            )
        options = parse(Options, words[:at], command=COMMAND, description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    except ValueError as error:
        return say_end(error, messages)
    try:
        theirs = harness_arguments(options, words[at + 1 :])
        register(step=options.step, best=options.best)
        harness = import_harness("clip_benchmark.cli")
        check_accuracy()
        with _command_line("clip_benchmark", theirs):
            harness.main()
    except SystemExit as ended:  # of their parser, which has said why
        return ExitStatus.MISTAKE if ended.code else ExitStatus.DONE
    except (ValueError, OSError, KeyboardInterrupt) as error:
        return say_end(error, messages)
    return ExitStatus.DONE


def harness_arguments(options: Options, given: Sequence[str]) -> list[str]:
    """The words of CLIP_benchmark's command line; of what is given twice it takes the last.

    Raises ValueError for options that --checkpoint decides, and where no data set is given.
    """
    names = [word.partition("=")[0] for word in given]
    if taken := [name for name in names if name in TAKEN]:
        raise ValueError(f"{taken[0]} is what --checkpoint says; leave it out.")
    if "--dataset" not in names:
        raise ValueError(
            "Say what to measure behind `--`, in CLIP_benchmark's options: -- --dataset=wds/SET "
            "--dataset_root=FOLDER"
        )
    model = options.checkpoint.resolve().name.replace("{", "").replace("}", "")
    return [
        "eval",
        f"--model_type={MODEL_TYPE}",
        f"--model={MODEL_TYPE}",
        f"--pretrained={options.checkpoint}",
        f"--output={{dataset}}_{model}_{{language}}_{{task}}.json",
        *DEFAULTS,
        *given,
    ]


@contextmanager
def _command_line(program: str, words: Sequence[str]) -> Iterator[None]:
    """Within it, the process has this command line, which CLIP_benchmark reads itself."""
    before = sys.argv
    sys.argv = [program, *words]
    try:
        yield
    finally:
        sys.argv = before
