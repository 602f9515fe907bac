"""A model with a known answer: what it says can be read off the pixels and the tokens.

An image's first pixel (r, g, b) is its embedding; region query q gives pixel (0, q) as embedding
and a box centred on the image's column q. A text's embedding is the direction of its last letter.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.data.records import Caption, Record, Region, ZeroShotSet
from grain_jax.data.transforms import Preprocessing
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.predictor import Model
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.outputs import ImageOutput

COLOURS = {"red": 0, "green": 1, "blue": 2}
SIZE, QUERIES = 4, 2


class ToyTokenizer:
    """Red is 1, green 2, blue 3, any other word 4; end-of-text is 5."""

    vocab_size = 6
    pad_id = 0

    def encode(self, texts, length):
        ids, cut = np.zeros((len(texts), length), np.int32), np.zeros(len(texts), bool)
        for row, text in enumerate(texts):
            words = [COLOURS.get(word, 3) + 1 for word in text.lower().split()]
            kept = [*words[: length - 1], 5]
            ids[row, : len(kept)], cut[row] = kept, len(words) >= length
        return ids, cut

    def spec(self):
        return {}


class ToyModel(nn.Module):
    """Embeds a text as the sum of the colours it names, an image and its regions as their pixel."""

    regions: bool = True

    def encode_images(self, images, *, train=False):
        batch = images.shape[0]
        if not self.regions:
            return ImageOutput(tokens=images, image_embed=images[:, 0, 0])
        centres = jnp.arange(QUERIES, dtype=jnp.float32) / QUERIES + 0.5 / QUERIES
        one = jnp.ones(QUERIES, jnp.float32)
        boxes = jnp.stack([centres, 0.5 * one, one / QUERIES, one], axis=-1)
        return ImageOutput(
            tokens=images,
            image_embed=images[:, 0, 0],
            region_embed=images[:, 1, :QUERIES],
            boxes=jnp.tile(boxes[None], (batch, 1, 1)),
        )

    def encode_texts(self, tokens):
        ids = tokens[..., None] == jnp.arange(1, 4)[None, None]
        return ids.sum(axis=1).astype(jnp.float32)


def toy_encoder(
    *,
    regions: bool = True,
    batch_size: int = 3,
    num_threads: int = 2,
    num_workers: int = 0,
    mesh=None,
    image_size: int = SIZE,
    smallest_batch: int | None = None,
) -> Encoder:
    return Encoder(
        ToyModel(regions=regions),
        {"logit_scale": np.log(np.float32(10.0))},
        tokenizer=ToyTokenizer(),
        preprocessing=Preprocessing(image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        batch_size=batch_size,
        caption_length=8,
        description_length=4,
        num_threads=num_threads,
        num_workers=num_workers,
        mesh=mesh,
        smallest_batch=smallest_batch,
    )


def make_image(whole: str, *parts: str) -> np.ndarray:
    """An image whose whole has one colour and whose region queries see others."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[0, 0, COLOURS[whole]] = 255
    for query, colour in enumerate(parts):
        image[1, query, COLOURS[colour]] = 255
    return image


def half(query: int) -> tuple[float, float, float, float]:
    """xyxy of the box that a query always predicts."""
    return (query / QUERIES, 0.0, (query + 1) / QUERIES, 1.0)


class ToySource:
    """Records in a list."""

    def __init__(self, *records: Record):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        return self.records[index]


def record(name: str, whole: str, *parts: str, label: str | None = None) -> Record:
    return Record(
        id=name,
        image=make_image(whole, *parts),
        captions=(Caption(f"a {whole} thing"),),
        regions=tuple(Region(half(q), f"{colour} part") for q, colour in enumerate(parts)),
        label=label,
    )


def toy_model(
    *, regions: bool = True, resize: str = "squash", batch_size: int = 4, note=print, model=None
) -> Model:
    """The toy ready for use, with a logit scale of 10."""
    config = TrainConfig(data=DataConfig(caption_length=8, description_length=4))
    config.model.type, config.model.embed_dim = ("grain" if regions else "clip"), 3
    loaded = ModelBundle(
        model=ToyModel(regions=regions) if model is None else model,
        params={"logit_scale": np.log(np.float32(10.0))},
        config=config,
        tokenizer=ToyTokenizer(),
        preprocessing=Preprocessing(SIZE, resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        templates=("a {} thing",),
        step=7,
    )
    return Model(loaded, batch_size=batch_size, note=note)


def columns(*colours: str, height: int = 40, width: int = 80) -> np.ndarray:
    """An image of equal columns; black where there are fewer than four."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(colours):
        start, stop = (width * (number + i) // 4 for i in (0, 1))
        image[:, start:stop, COLOURS[colour]] = 255
    return image


def bird_set(**options) -> ZeroShotSet:
    """The whole image always says "red"; only the parts tell the two kinds apart."""
    records = [
        record("0", "red", "green", "blue", label="robin"),
        record("1", "red", "green", "red", label="wren"),
        record("2", "red", "green", "blue", label="robin"),
    ]
    settings = {
        "name": "birds",
        "source": ToySource(*records),
        "class_names": ("wren", "robin"),
        "templates": ("a {} bird",),
        "descriptions": {"robin": ("green part", "blue part"), "wren": ("green part", "red part")},
    }
    return ZeroShotSet(**(settings | options))
