"""Write a trained model for PyTorch, and compare it with ours, output by output; or read one back.

  python -m grain_jax.export --checkpoint=RUN --to=huggingface --output=DIR

  --to=huggingface  a folder for AutoModel.from_pretrained(DIR, trust_remote_code=True)
  --to=official     DIR/checkpoint.pth, which the official code loads with strict=True
  --to=run          a run folder, of any model that --checkpoint takes

RUN is a run folder, an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip:
a folder, or a name on the Hugging Face hub. DIR/parity.json holds the largest difference of every
output, in float32, on random inputs and on images and texts that the run evaluates on. An
export beyond 1e-4 fails and names the output. The model's calibration goes along, if it has one.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from grain_jax import runtime
from grain_jax.command_line import (
    OUT,
    Best,
    ExitStatus,
    NotParsed,
    RequiredPath,
    RunPath,
    Step,
    end,
    parse,
    status_of,
)
from grain_jax.data.source import data_source
from grain_jax.disk import disk_trouble, is_partial, whole_folder, write_whole
from grain_jax.evaluation.tables import results_at_step
from grain_jax.extras import how_to_install
from grain_jax.formats import parity
from grain_jax.formats.format import Export, TrainingRun
from grain_jax.formats.parity import Difference, Inputs, rounded, same_weights
from grain_jax.loading.calibration import calibration_of_copy
from grain_jax.loading.formats import writable_formats
from grain_jax.loading.load import read_model
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import normalize_images
from grain_jax.terminal import escape_unprintable
from grain_jax.training import metrics, run_folder
from grain_jax.zero_shot.calibration import FILE as CALIBRATION

NUM_INPUTS = 8  # images, and texts, of each comparison
Note = Callable[[str], None]
FormatName = Literal["huggingface", "official", "run"]  # those of `writable_formats`


@dataclass(frozen=True)
class Options:
    """What `export` takes."""

    checkpoint: Annotated[RunPath, arg(metavar="RUN")]  # run folder, or another model (above)
    to: FormatName  # what to write (above)
    output: Annotated[RequiredPath, OUT, arg(metavar="DIR")]  # new folder to write
    step: Step = None  # checkpoint of this step
    best: Best = False  # the checkpoint that keep_best kept
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    escape_unprintable()
    try:
        options = parse(Options, arguments, command="export", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    console = Console(stderr=True)
    runtime.quiet_libraries()
    try:
        runtime.open_devices()
    except ValueError as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return ExitStatus.MISTAKE
    try:
        loaded = _load(options)
        note = functools.partial(console.print, markup=False, soft_wrap=True)
        with whole_folder(options.output) as folder:
            _write(loaded, options, folder, note)
    except (ValueError, OSError) as error:
        _say_error(console, str(error))
        return status_of(error)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        return ExitStatus.INTERRUPTED
    except ImportError as error:
        text = f"Error: {error}. Install what exports need: {how_to_install('torch')}"
        console.print(text, style="red", markup=False, soft_wrap=True)
        return ExitStatus.MISTAKE
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        if (trouble := disk_trouble(error)) is None:
            raise
        _say_error(console, f"--output={options.output} could not be written: {trouble}")
        return ExitStatus.STOPPED
    print(f"Written to {options.output}")
    return ExitStatus.DONE


def _say_error(console: Console, text: str) -> None:
    console.print(f"Error: {text}", style="red", markup=False, soft_wrap=True)


def _load(options: Options) -> ModelBundle:
    formats = writable_formats()
    if options.dtype not in formats[options.to].dtypes:
        able = [name for name, each in formats.items() if options.dtype in each.dtypes]
        raise ValueError(
            f"--dtype={options.dtype} is for --to={' or '.join(able)}; {options.to} has "
            f"{', '.join(formats[options.to].dtypes)}."
        )
    out = options.output
    if out.exists() and not (out.is_dir() and all(map(is_partial, out.iterdir()))):
        raise ValueError(f"--output={options.output} is there already; give a new folder.")
    return read_model(options.checkpoint, step=options.step, best=options.best)


def _write(loaded: ModelBundle, options: Options, folder: Path, note: Note) -> None:
    """Writes `folder` and compares what can be read from it with the model."""
    writer = writable_formats()[options.to]
    writer.write(loaded, folder, dtype=options.dtype)
    differences: list[Difference] = []
    # What a reader gets, against parameters that went through the same rounding.
    params = rounded(loaded.params, options.dtype)
    if outputs := writer.outputs(folder, dtype="float32"):
        inputs, ours = _inputs(loaded, note), parity.jax_outputs(loaded.config.model)
        differences = parity.compare(functools.partial(ours, params), outputs, inputs)
        _print("Difference from the model, float32", differences)
        rounding: list[Difference] = []
        if options.dtype != "float32" and (outputs := writer.outputs(folder, dtype=options.dtype)):
            rounding = parity.compare(functools.partial(ours, loaded.params), outputs, inputs)
            _print(f"What {options.dtype} changes; no limit on this", rounding)
        parity.write_parity(differences, folder, rounding=rounding)
    read_back = writer.read(folder)
    if not same_weights(read_back, params):
        raise ValueError(
            f"What was written as {options.to} does not read back to the same weights; please "
            "report this."
        )
    if (
        calibration := calibration_of_copy(options.checkpoint, loaded, read_back, note)
    ) is not None:
        write_whole(folder / CALIBRATION, calibration, errors="backslashreplace")
        note(f"The calibration of {options.checkpoint} goes along as {CALIBRATION}.")
    run = _training_run(options.checkpoint, loaded)
    done = Export(folder, options.output, options.dtype, run, differences)
    for text in writer.finish(loaded, done):
        note(text)


def _training_run(path: Path, loaded: ModelBundle) -> TrainingRun:
    """What is known of the run at `path`; little where it is not a run folder."""
    folder = path / run_folder.FOLDER if (path / run_folder.FOLDER).is_dir() else path
    if not run_folder.complete_steps(folder):
        return TrainingRun(path.name)
    if not (num_images := int(run_folder.read_metadata(folder, loaded.step)["num_images"])):
        return TrainingRun(path.name)
    run = path if (path / metrics.FILE).exists() else path.parent
    data = data_source(loaded.config.data, image_size=loaded.preprocessing.image_size)
    measured = results_at_step(run, loaded.step, headline=data.headline)
    return TrainingRun(path.name, num_images, measured)


def _inputs(loaded: ModelBundle, note: Note) -> list[Inputs]:
    random = parity.random_inputs(loaded.config.model, count=NUM_INPUTS)
    data, spec = loaded.config.data, loaded.preprocessing
    try:
        own = data_source(data, image_size=spec.image_size)
        split = own.held_out_split
        source = own.records(split) if split else own.training_records()
        records = [source[i] for i in range(min(NUM_INPUTS, len(source)))]
        squares = np.stack([spec(record.image) for record in records])
    except (ValueError, OSError) as error:
        note(f"Compared on random inputs only: the run's data cannot be read ({error})")
        return [random]
    pixels = np.asarray(normalize_images(jnp.asarray(squares), spec.mean, spec.std))
    captions = [caption.text for record in records for caption in record.captions]
    names = [template.replace("{}", "thing") for template in loaded.templates]
    texts = list(itertools.islice(itertools.cycle(captions or names), NUM_INPUTS))
    tokens, _ = loaded.tokenizer.encode(texts, data.caption_length)
    padding = random.tokens.shape[1] - tokens.shape[1]  # so that both compile to one program
    return [random, Inputs("real", pixels, np.pad(tokens, ((0, 0), (0, padding))))]


def _print(title: str, differences: Sequence[Difference]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("inputs", "output", "largest absolute", "of the largest value"):
        table.add_column(name)
    for found in differences:
        row = (found.inputs, found.output, f"{found.absolute:.1e}", f"{found.relative:.1e}")
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    end(main())
