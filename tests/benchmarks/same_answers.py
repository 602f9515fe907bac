"""Whether an export answers as the model it came from, image by image, on a whole set.

python tests/benchmarks/same_answers.py --checkpoint=RUN --export=DIR --data=SET [--split=SPLIT]

SET is what `python -m grain_jax.evaluate` takes: labelled images, or records with their split. The
export is used as transformers loads it; images and texts go through its own processor. Printed
for each figure: ours, PyTorch's, and of labelled images how many are put into the same class.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoProcessor

from grain_jax.command_line import OptionalText, RequiredPath, parse
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.records import EvaluationSet, Source
from grain_jax.data.source import open_source
from grain_jax.data.transforms import Preprocessing, decode_image
from grain_jax.evaluation.suite import evaluate_set
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.encoder import Encoder, ImageFeatures
from grain_jax.loading.load import read_model
from grain_jax.results import logged, result_key
from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.methods import DEFAULT_METHODS, FittedMethods, encode_banks
from grain_jax.zero_shot.scorers import class_texts

ALPHAS = (1.0, 0.5, 0.0)
BATCH = 64


class TorchEncoder:
    """An exported folder with the two calls of `Encoder` that the metrics use."""

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing  # which true boxes go through
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

    def images(self, source: Source, **_: Any) -> ImageFeatures:
        """Embeddings and boxes of every image of the source."""
        parts = []
        for start in range(0, len(source), BATCH):
            rows = range(start, min(start + BATCH, len(source)))
            images = [Image.fromarray(decode_image(source[i].image)) for i in rows]
            inputs = self.processor(images=images, return_tensors="pt")
            with torch.no_grad():
                output = self.model(**inputs)
            found = (output.image_embeds, output.region_embeds, output.pred_boxes)
            parts.append([None if value is None else value.numpy() for value in found])
        columns = zip(*parts, strict=True)
        joined = (None if column[0] is None else np.concatenate(column) for column in columns)
        return ImageFeatures(*joined)

    def texts(self, texts: Sequence[str], *, kind: str) -> np.ndarray:
        """Embeddings of texts, as captions or as descriptions."""
        parts = []
        for start in range(0, len(texts), BATCH):
            block = list(texts[start : start + BATCH])
            given = {"descriptions" if kind == "description" else "text": block}
            with torch.no_grad():
                output = self.model(**self.processor(**given, return_tensors="pt"))
            embeds = output.description_embeds if kind == "description" else output.text_embeds
            parts.append(embeds.numpy())
        return np.concatenate(parts)


@dataclasses.dataclass
class Options:
    """What to compare, on what."""

    checkpoint: str  # run folder, or another name of a model
    export: RequiredPath  # what `python -m grain_jax.export` wrote of it
    data: RequiredPath  # labelled images, or records
    split: OptionalText = None  # of records


def main() -> int:
    """1 where a figure or the class of an image differs."""
    options = parse(Options, None, command="same_answers", description=__doc__)
    loaded = read_model(options.checkpoint)
    ours = Encoder.from_bundle(loaded)
    theirs = TorchEncoder(options.export, loaded.preprocessing)
    compare = _records if options.split else _labelled
    rows = compare(options, ours, theirs, loaded)
    table = Table(title=f"{options.data.name}, {options.checkpoint}", title_justify="left")
    for name in ("figure", "JAX, %", "PyTorch, %", "same answer"):
        table.add_column(name)
    for name, (first, second, same) in rows.items():
        if name.endswith(("/images", "/texts")):  # counts
            continue
        table.add_row(name, f"{100 * first:.4f}", f"{100 * second:.4f}", same)
    Console(width=120).print(table)
    return int(any(first != second for first, second, _ in rows.values()))


def _labelled(options: Options, ours, theirs, loaded) -> dict[str, tuple[float, float, str]]:
    dataset = load_zero_shot(options.data, default_templates=loaded.templates, note=print)
    texts, settings = class_texts(dataset), loaded.config.evaluation
    zero_shot = {
        "prompt_ensembling": settings.prompt_ensembling,
        "region_aggregation": settings.region_aggregation,
    }
    metrics, answers = [], []
    for encoder in (ours, theirs):
        features = encoder.images(dataset.source)
        regions = {"methods": DEFAULT_METHODS, "has_regions": features.regions is not None}
        banks = encode_banks(encoder.texts, texts, **regions, **zero_shot)
        fitted = FittedMethods(banks, alphas=ALPHAS, **regions)
        scores = fitted(Images(features.image, features.regions))
        answers.append({way: values.argmax(axis=1) for way, values in scores.items()})
        metrics.append(
            logged(
                evaluate_zero_shot(encoder, dataset, alphas=ALPHAS, features=features, **zero_shot)
            )
        )
    rows = {}
    for (method, alpha), first in answers[0].items():
        name = result_key(dataset.name, method, alpha)
        same = int((first == answers[1][method, alpha]).sum())
        rows[name] = metrics[0][name], metrics[1][name], f"{same} of {len(first)}"
    return rows


def _records(options: Options, ours, theirs, loaded) -> dict[str, tuple[float, float, str]]:
    data = dataclasses.replace(loaded.config.data, dataset="tfds", data_dir=str(options.data))
    source = open_source(data, options.split, image_size=loaded.preprocessing.image_size)
    held_out = EvaluationSet(options.split, f"Split {options.split!r}", source)
    metrics = [
        logged(evaluate_set(encoder, held_out, loaded.config, final=True))
        for encoder in (ours, theirs)
    ]
    return {name: (value, metrics[1][name], "") for name, value in metrics[0].items()}


if __name__ == "__main__":
    sys.exit(main())
