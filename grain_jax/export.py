"""Write a trained model for PyTorch, and compare it with ours, output by output.

python -m grain_jax.export --checkpoint=RUN --to=huggingface --out=DIR

--to=huggingface  a folder for AutoModel.from_pretrained(DIR, trust_remote_code=True)
--to=official     DIR/checkpoint.pth, which the official code loads with strict=True

DIR/parity.json holds the largest difference of every output, in float32, on random inputs and on
pictures and texts of the run's own held-out data. An export beyond 1e-4 fails and names the output.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from grain_jax.data.sources import open_source
from grain_jax.interop import parity
from grain_jax.interop.parity import Difference, Inputs
from grain_jax.models.build import normalize_images
from grain_jax.training import checkpoint
from grain_jax.training.checkpoint import LoadedModel

FORMATS = ("huggingface", "official")
NUM_REAL = 8  # pictures of the comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 the user has something to change."""
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        differences = export(options, note=functools.partial(console.print, markup=False))
    except (ValueError, OSError) as error:
        console.print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except ImportError as error:
        console.print(f"Error: {error}. Install it: pip install 'grain_jax[torch]'", style="red")
        return 1
    _print(differences, Console())
    print(f"Written to {options.out}")
    return 0


def export(options: argparse.Namespace, *, note: Callable[[str], None]) -> list[Difference]:
    """Writes the export and its `parity.json`. Raises ValueError where it differs from the model."""
    from grain_jax.interop import huggingface_folder, official_files

    if options.dtype != "float32" and options.to != "huggingface":
        raise ValueError(f"--dtype={options.dtype} is for --to=huggingface; official is float32.")
    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"--out={options.out} is not empty; give a new folder.")
    loaded = checkpoint.load(options.checkpoint, step=options.step, best=options.best)
    options.out.mkdir(parents=True, exist_ok=True)
    config = loaded.config.model
    if options.to == "official":
        path = options.out / "checkpoint.pth"
        official_files.save_official(loaded.params, config, path)
        written = official_files.load_official(path, config)  # what a reader of the file gets
    else:
        huggingface_folder.write_folder(loaded, options.out, dtype=options.dtype)
        written = loaded.params
    model = huggingface_folder.torch_model(loaded, params=written)
    differences = parity.compare(
        lambda inputs: parity.our_outputs(loaded.params, config, inputs),
        lambda inputs: huggingface_folder.torch_outputs(model, inputs),
        [parity.random_inputs(config), *_real_inputs(loaded, note)],
    )
    parity.write_parity(differences, options.out)
    return differences


def _real_inputs(loaded: LoadedModel, note: Callable[[str], None]) -> list[Inputs]:
    data = loaded.config.data
    split = "validation" if data.source == "world" else data.eval_split or data.train_split
    try:
        source = open_source(data, split, image_size=loaded.preprocessing.image_size)
    except ValueError as error:
        note(f"Compared on random inputs only: the run's data cannot be read ({error})")
        return []
    records = [source[i] for i in range(min(NUM_REAL, len(source)))]
    squares = np.stack([loaded.preprocessing(record.image) for record in records])
    spec = loaded.preprocessing
    pixels = np.asarray(normalize_images(jnp.asarray(squares), spec.mean, spec.std))
    texts = [caption.text for record in records for caption in record.captions] or ["a photo"]
    tokens, _ = loaded.tokenizer.encode(texts, loaded.config.model.text.context_length)
    return [Inputs("real", pixels, tokens)]


def _print(differences: Sequence[Difference], console: Console) -> None:
    table = Table(title="Difference from the model, float32", title_justify="left")
    for name in ("inputs", "output", "largest absolute", "of the largest value"):
        table.add_column(name)
    for found in differences:
        row = (found.inputs, found.output, f"{found.absolute:.1e}", f"{found.relative:.1e}")
        table.add_row(*row)
    console.print(table)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grain_jax.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="RUN", help="folder of a run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    which.add_argument("--best", action="store_true", help="the one keep-best kept")
    add("--to", required=True, choices=FORMATS)
    add("--out", required=True, type=Path, help="new folder to write")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
