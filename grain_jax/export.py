"""Write a trained model for PyTorch, and compare it with ours, output by output; or read one back.

  python -m grain_jax.export --checkpoint=RUN --to=huggingface --output=DIR

  --to=huggingface  a folder for AutoModel.from_pretrained(DIR, trust_remote_code=True)
  --to=official     DIR/checkpoint.pth, which the official code loads with strict=True
  --to=run          a run folder, of any model that --checkpoint takes

RUN is a run folder, an export, an official .pth, or a CLIP or SigLIP of Hugging Face or open_clip:
a folder, or a name on the Hugging Face hub. DIR/parity.json holds the largest difference of every
output, in float32, on random inputs and on images and texts that the run evaluates on. An
export beyond 1e-4 fails and names the output.
"""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
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
    Step,
    end,
    parse,
    status_of,
)
from grain_jax.data.source import data_source
from grain_jax.data.tokenizer import ClipTokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.disk import disk_trouble, is_partial, whole_folder
from grain_jax.evaluation.tables import results_at_step
from grain_jax.extras import how_to_install
from grain_jax.formats import parity
from grain_jax.formats.model_card import TrainingRun, model_card
from grain_jax.formats.parity import Difference, Inputs, Outputs
from grain_jax.loading.load import read_model
from grain_jax.loading.write_run import write_run
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import normalize_images
from grain_jax.terminal import escape_unprintable
from grain_jax.training import metrics, run_folder

NUM_INPUTS = 8  # images, and texts, of each comparison
TEXTS = (
    "a red bird",
    "  A photo of\ta BLACK cat's  two yellow-eyed kittens, 12 weeks old!",
    "a dog runs over the wet grass of a park while two children in blue coats look at it " * 3,
)

Note = Callable[[str], None]


Format = Literal["huggingface", "official", "run"]


@dataclass(frozen=True)
class Options:
    """What `export` takes."""

    checkpoint: Annotated[RequiredPath, arg(metavar="RUN")]  # run folder, or another model (above)
    to: Format  # what to write (above)
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
            WRITERS[options.to](loaded, options, folder, note)
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
    if options.dtype != "float32" and options.to != "huggingface":
        raise ValueError(f"--dtype={options.dtype} is for --to=huggingface; official is float32.")
    out = options.output
    if out.exists() and not (out.is_dir() and all(map(is_partial, out.iterdir()))):
        raise ValueError(f"--output={options.output} is there already; give a new folder.")
    return read_model(options.checkpoint, step=options.step, best=options.best)


def _write_official(loaded: ModelBundle, options: Options, out: Path, note: Note) -> None:
    from grain_jax.formats import grain_reference_files
    from grain_jax.formats import huggingface as huggingface_folder

    config, path = loaded.config.model, out / grain_reference_files.OFFICIAL_FILE
    grain_reference_files.save_official(loaded, path)
    read = read_model(path).params
    if not jax.tree.all(jax.tree.map(np.array_equal, read, loaded.params)):
        raise ValueError(f"{path} does not read back to the same weights; please report this.")
    # Built from the file, not from our parameters, and under the names that the file has.
    model = huggingface_folder.torch_model(loaded, params=read)
    ours = functools.partial(parity.jax_outputs(config), loaded.params)
    differences = _compare(ours, model, _inputs(loaded, note))
    _print("Difference from the model, float32", differences)
    parity.write_parity(differences, out)
    if name := grain_reference_files.constructor(config):
        queries = config.decoder.num_queries + 1
        decoder = f" and ObjDecoder(num_queries={queries}, ...)" if config.type == "grain" else ""
        note(f"Loads into {name}(){decoder}.")
    else:
        note(
            "No CLIP_VIT* of the official code has these sizes: give its classes those of the "
            "run's config.json, the number of heads too, which no shape would reveal."
        )
    spec = loaded.preprocessing
    if spec != Preprocessing() or not isinstance(loaded.tokenizer, ClipTokenizer):
        note(
            "The official scripts squash images to a square of 224 pixels, take ImageNet's mean "
            "and standard deviation, and CLIP's words. This model was trained on others: "
            f"{json.dumps(spec.spec())}, tokenizer {loaded.tokenizer.spec()['kind']}."
        )


def _write_huggingface(loaded: ModelBundle, options: Options, out: Path, note: Note) -> None:
    from transformers.utils import logging

    from grain_jax.formats import huggingface as huggingface_folder

    logging.disable_progress_bar()
    huggingface_folder.write_folder(loaded, out, dtype=options.dtype)
    inputs, ours = _inputs(loaded, note), parity.jax_outputs(loaded.config.model)
    _compare_tokens(loaded, out)
    # What a reader of the folder gets, against parameters that went through the same rounding.
    params = huggingface_folder.rounded(loaded.params, options.dtype)
    model = huggingface_folder.read_model(out, dtype="float32")
    differences = _compare(functools.partial(ours, params), model, inputs)
    _print("Difference from the model, float32", differences)
    rounding: list[Difference] = []
    if options.dtype != "float32":
        model = huggingface_folder.read_model(out, dtype=options.dtype)
        rounding = _compare(functools.partial(ours, loaded.params), model, inputs)
        _print(f"What {options.dtype} changes; no limit on this", rounding)
    parity.write_parity(differences, out, rounding=rounding)
    run = _training_run(options.checkpoint, loaded)
    card = model_card(loaded, run, differences, dtype=options.dtype)
    (out / "README.md").write_text(card, encoding="utf-8")


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


def _write_run(loaded: ModelBundle, options: Options, out: Path, note: Note) -> None:
    write_run(loaded, out)
    again = read_model(out)
    if not jax.tree.all(jax.tree.map(np.array_equal, again.params, loaded.params)):
        raise ValueError(f"{out} does not read back to the same weights; please report it.")
    note(f"python -m grain_jax.evaluate --checkpoint={options.output} --data=... measures it;")
    note(f"python -m grain_jax.train --config=... --pretrained={options.output} trains from it.")


WRITERS: dict[Format, Callable[[ModelBundle, Options, Path, Note], None]] = {
    "huggingface": _write_huggingface,
    "official": _write_official,
    "run": _write_run,
}


def _compare_tokens(loaded: ModelBundle, folder: Path) -> None:
    """Raises ValueError where the folder's own tokenizer, as a reader gets it, gives other ids."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    length = loaded.config.data.caption_length
    ours, _ = loaded.tokenizer.encode(TEXTS, length)
    for text, row in zip(TEXTS, ours.tolist(), strict=True):
        ids = tokenizer(text, truncation=True, padding="max_length", max_length=length)
        used = [i for i, kept in zip(ids["input_ids"], ids["attention_mask"], strict=True) if kept]
        whole = ids["input_ids"] if loaded.config.model.text.pooling == "last" else used
        if row[: len(whole)] != whole:
            raise ValueError(f"The exported tokenizer takes {text!r} for {whole}, ours for {row}.")


def _compare(
    ours: Callable[[Inputs], Outputs], model: Any, inputs: Sequence[Inputs]
) -> list[Difference]:
    from grain_jax.formats import huggingface as huggingface_folder

    theirs = functools.partial(huggingface_folder.torch_outputs, model)
    return parity.compare(ours, theirs, inputs)


def _inputs(loaded: ModelBundle, note: Note) -> list[Inputs]:
    random = parity.random_inputs(loaded.config.model, count=NUM_INPUTS)
    data, spec = loaded.config.data, loaded.preprocessing
    try:
        own = data_source(data, image_size=spec.image_size)
        source = own.records(own.held_out_split or data.train_split)
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
