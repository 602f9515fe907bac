"""Times zero-shot classification of random weights: images, texts, scores."""

import io
import statistics
import time
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from grain_jax.benchmarking.flops import image_flops
from grain_jax.benchmarking.hardware import peak_of
from grain_jax.config import TrainConfig
from grain_jax.data.records import InMemory, Record, ZeroShotSet
from grain_jax.data.source import data_source
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.suite import score_zero_shot
from grain_jax.inference.encoder import Encoder
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import model_of_run
from grain_jax.training.optimizer import make_optimizer
from grain_jax.training.state import abstract_state, new_state
from grain_jax.zero_shot.scorers import class_texts

DIFFERENT = 64  # images that a random set repeats
WIDTH, HEIGHT = 341, 256
ADJECTIVES = ("red", "long", "small", "striped", "bright")


@dataclass(frozen=True)
class EvaluationTiming:
    """Seconds of classifying a set; the first of each is with its compilation."""

    images: int
    classes: int
    texts: int  # different ones, of names and descriptions
    image_seconds: tuple[float, ...]  # of encoding all images, decoding included, time after time
    text_seconds: tuple[float, ...]  # of encoding all texts
    # of all that follows the images: class texts encoded, scores by every method, accuracies
    classify_seconds: tuple[float, ...]
    batch_size: int
    num_devices: int
    device_kind: str
    image_flops: float  # of one image, forward
    peak_bytes: int | None  # as of `StepTiming`

    @property
    def images_per_second(self) -> float:
        """Decoded and encoded, without compilation, median."""
        return self.images / statistics.median(self.image_seconds[1:])

    @property
    def texts_per_second(self) -> float:
        """Encoded, without compilation, median; the encoder keeps the tokens of the first time."""
        return self.texts / statistics.median(self.text_seconds[1:])

    @property
    def mfu(self) -> float | None:
        """Of encoding images, decoding included; None without a published peak."""
        peak = peak_of(self.device_kind)
        if peak is None:
            return None
        flops = self.image_flops * self.images_per_second
        return flops / (self.num_devices * peak.bfloat16)


def random_set(config: TrainConfig, *, num_images: int, num_classes: int) -> ZeroShotSet:
    """JPEG images of smooth noise, and classes with five descriptions each."""
    rng, files = np.random.default_rng(0), []
    for _ in range(min(DIFFERENT, num_images)):
        coarse = Image.fromarray(rng.integers(0, 255, (32, 43, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    names = tuple(f"kind {number}" for number in range(num_classes))
    records = tuple(
        Record(str(i), files[i % len(files)], label=names[i % num_classes])
        for i in range(num_images)
    )
    return ZeroShotSet(
        name="random",
        source=InMemory(records),
        class_names=names,
        templates=data_source(config.data, image_size=config.model.image_size).templates,
        descriptions={
            name: tuple(f"a {word} part of {name}" for word in ADJECTIVES) for name in names
        },
    )


def random_encoder(config: TrainConfig, mesh: Mesh) -> Encoder:
    """An encoder with new weights, on the devices of `mesh`."""
    model, optimizer = model_of_run(config), make_optimizer(config.optim)
    abstract = abstract_state(model, optimizer, config, mesh)
    bundle = ModelBundle(
        model=model,
        params=new_state(model, optimizer, config, abstract).inference_params,
        config=config,
        tokenizer=build_tokenizer(config.data, pooling=config.model.text.pooling),
        preprocessing=Preprocessing.from_config(config.data, config.model.image_size),
        templates=data_source(config.data, image_size=config.model.image_size).templates,
        step=0,
    )
    return Encoder.from_bundle(bundle, mesh=mesh)


def time_evaluation(
    config: TrainConfig, dataset: ZeroShotSet, *, rounds: int, mesh: Mesh
) -> EvaluationTiming:
    """Encodes and classifies the set once with compilation, then `rounds` times."""
    encoder = random_encoder(config, mesh)
    named = class_texts(dataset)
    texts = {
        "caption": list(dict.fromkeys(text for of in named.names for text in of)),
        "description": list(dict.fromkeys(text for of in named.descriptions for text in of)),
    }
    image, text, classify = [], [], []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        features = encoder.images(dataset.source)
        image.append(time.perf_counter() - started)
        started = time.perf_counter()
        for kind, some in texts.items():
            encoder.texts(some, kind=kind)
        text.append(time.perf_counter() - started)
        started = time.perf_counter()
        score_zero_shot(encoder, dataset, config, final=False, features=features)
        classify.append(time.perf_counter() - started)
    device = mesh.devices.flat[0]
    return EvaluationTiming(
        images=len(dataset.source),
        classes=len(dataset.class_names),
        texts=sum(map(len, texts.values())),
        image_seconds=tuple(image),
        text_seconds=tuple(text),
        classify_seconds=tuple(classify),
        batch_size=encoder.batch_size,
        num_devices=mesh.size,
        device_kind=device.device_kind,
        image_flops=image_flops(config),
        peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
    )
