"""Images and texts to cached unit-length embeddings: everything the metrics look at.

One compilation for images and a few for texts (by length), on one device or sharded over a mesh;
with `smallest_batch` a few more, so that one image does not cost a whole batch. On several hosts
every host calls with the same source and gets all embeddings, and decodes only its own rows.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from grain_jax.data.image_variants import ImageVariants
from grain_jax.data.loader import evaluation_batches
from grain_jax.data.records import Source
from grain_jax.data.tokenizer import PaddedTokenizer, Tokenizer
from grain_jax.data.transforms import Preprocessing
from grain_jax.inference.length_groups import compiled_length, length_groups, used_lengths
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.image_text import normalize_images
from grain_jax.models.learned import EVERYTHING, Learned
from grain_jax.parallel.processes import FailedInAll, raise_in_all
from grain_jax.parallel.sharding import (
    BATCH_AXES,
    batch_sharding,
    local_rows,
    put_rows,
    replicated,
    use_mesh,
)

MAX_TOKEN_BYTES = 1 << 26  # of the tokens that are kept
DIVERGED = (
    "The weights have diverged: evaluate an earlier checkpoint (--step), and train on with a lower "
    "optim.learning_rate or with optim.clip_grad_norm=1."
)


@dataclass(frozen=True)
class ImageFeatures:
    """What the model says about N images; float32, embeddings of unit length."""

    image: Float[np.ndarray, "N E"]
    # None for a model without decoder, and where this part of it was never trained.
    regions: Float[np.ndarray, "N Q E"] | None
    boxes: Float[np.ndarray, "N Q 4"] | None  # cxcywh in [0, 1] of the image the model sees

    def rows(self, start: int, stop: int) -> "ImageFeatures":
        """Those of some images in a row."""
        image, regions, boxes = (
            None if part is None else part[start:stop]
            for part in (self.image, self.regions, self.boxes)
        )
        assert image is not None
        return ImageFeatures(image, regions, boxes)


class Encoder:
    """A model with its parameters, tokenizer and preprocessing, ready to embed."""

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        *,
        tokenizer: Tokenizer,
        preprocessing: Preprocessing,
        batch_size: int,
        caption_length: int,
        description_length: int,
        num_threads: int = 2,
        num_workers: int = 0,
        max_logit_scale: float = math.inf,
        mesh: Mesh | None = None,
        smallest_batch: int | None = None,
        learned: Learned = EVERYTHING,
    ):
        """`batch_size` is global and rounded up to what the mesh divides; lengths are in tokens;
        `num_threads` decode images, in each of `num_workers` processes where there are any. What
        does not fill a batch is padded to `smallest_batch` (None: `batch_size`), doubled as often
        as it takes: each size is a compilation. Features leave out regions or boxes that are not
        `learned`.
        """
        if batch_size < 1:
            raise ValueError(f"evaluation.batch_size must be at least 1, got {batch_size}.")
        if smallest_batch is not None and smallest_batch < 1:
            raise ValueError(f"smallest_batch must be at least 1, got {smallest_batch}.")
        self.model, self.params, self._max_logit_scale = model, params, max_logit_scale
        self.tokenizer, self.preprocessing = tokenizer, preprocessing
        self.lengths = {"caption": caption_length, "description": description_length}
        self.learned = learned
        self.truncated_texts = 0  # different texts that were longer than their length
        # Shared by the encoders of `with_params`, as tokens do not depend on the weights.
        self._kept_tokens: dict[tuple[str, tuple[str, ...]], tuple[np.ndarray, np.ndarray]] = {}
        self._num_threads, self._num_workers = num_threads, num_workers
        self._mesh = mesh
        self._sharding = None if mesh is None else batch_sharding(mesh)
        shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self.batch_size = -(-batch_size // shards) * shards
        self._sizes = [self.batch_size]  # of batches, ascending
        if smallest_batch is not None:
            smaller = -(-smallest_batch // shards) * shards
            while smaller < self.batch_size:
                self._sizes.insert(-1, smaller)
                smaller *= 2
        whole = None if mesh is None else replicated(mesh)
        self._encode_images = jax.jit(self._image_outputs, out_shardings=whole)
        self._embed_images = jax.jit(self._image_embed, out_shardings=whole)
        self._encode_texts = jax.jit(self._text_outputs, out_shardings=whole)

    @classmethod
    def from_bundle(
        cls,
        bundle: ModelBundle,
        *,
        batch_size: int | None = None,
        mesh: Mesh | None = None,
        smallest_batch: int | None = None,
        num_workers: int | None = None,
    ) -> "Encoder":
        """The encoder of a model, with the batch size, text lengths and workers of its settings.

        Args:
            batch_size: images or texts at once, of all devices together.
            num_workers: processes that decode images; 0: threads of this one.

        Those two are of the settings where None; `mesh` and `smallest_batch` as in `Encoder`.
        """
        data, evaluation = bundle.config.data, bundle.config.evaluation
        return cls(
            bundle.model,
            bundle.params,
            tokenizer=bundle.tokenizer,
            preprocessing=bundle.preprocessing,
            batch_size=evaluation.batch_size if batch_size is None else batch_size,
            caption_length=data.caption_length,
            description_length=data.description_length,
            num_threads=data.num_threads,
            num_workers=data.num_workers if num_workers is None else num_workers,
            max_logit_scale=bundle.config.model.max_logit_scale,
            mesh=mesh,
            smallest_batch=smallest_batch,
            learned=bundle.learned,
        )

    def with_params(self, params: Any, *, learned: Learned | None = None) -> "Encoder":
        """The same encoder with other parameters of the same shapes; compiles nothing again.

        `learned`: None, as it was.
        """
        other = object.__new__(Encoder)
        other.__dict__.update(self.__dict__, params=params, truncated_texts=0)
        other.learned = self.learned if learned is None else learned
        return other

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by in training, at least 1."""
        scale = float(np.exp(np.asarray(self.params["logit_scale"]).item()))
        return min(max(scale, 1.0), self._max_logit_scale)

    def images(
        self, source: Source, *, on_batch: Callable[[int], None] | None = None
    ) -> ImageFeatures:
        """Features of every record of the source, in its order; `on_batch` is told how many are
        done.

        Raises ValueError when it is empty, an image cannot be decoded, or what the model says about
        one is not finite; `errors_about` adds which source that is.
        """
        if len(source) == 0:
            raise ValueError("There are no images to encode: the split or folder is empty.")
        outputs = self._encoded(source, self._encode_images, on_batch)

        def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts)[: len(source)]

        image, regions, boxes = zip(*outputs, strict=True)
        if regions[0] is None:
            features = ImageFeatures(joined(image), None, None)
        else:
            features = ImageFeatures(
                joined(image),
                joined(regions) if self.learned.regions else None,
                joined(boxes) if self.learned.boxes else None,
            )
        odd = _rows_not_finite(features.image, features.regions, features.boxes)
        failure = None
        if len(odd):
            failure = ValueError(
                f"What the model says about image {source[int(odd[0])].id!r} is not finite ("
                f"{len(odd)} of {len(source)} images). {DIVERGED}"
            )
        raise_in_all(failure)
        return features

    def whole_images(self, source: Source) -> Float[np.ndarray, "N E"]:
        """The embedding of every image as a whole. Raises ValueError as `images`."""
        return self.images(source).image

    def variants(self, source: ImageVariants) -> Float[np.ndarray, "N V E"]:
        """Image embeddings, of unit length, of the V variants of each of N images; all embeddings
        are held, and the pixels of a few batches. A decoder has no part in them.

        Raises ValueError as `images`.
        """
        if len(source) == 0:
            raise ValueError("There are no images to make variants of.")
        found = np.concatenate(self._encoded(source, self._embed_images, None))[: len(source)]
        odd = _rows_not_finite(found)
        failure = None
        if len(odd):
            failure = ValueError(
                f"The embedding of {source[int(odd[0])].id!r}, a variant of an image, is not "
                f"finite ({len(odd)} of {len(source)}). {DIVERGED}"
            )
        raise_in_all(failure)
        return found.reshape(len(source.images), source.of_each, -1)

    def _encoded(
        self, source: Source, encode: Callable[..., Any], on_batch: Callable[[int], None] | None
    ) -> list[Any]:
        """What `encode` makes of each batch; the last one is padded."""
        failures: list[ValueError] = []
        outputs, done = [], 0
        sizes: list[int] = []

        def batches() -> Iterator[np.ndarray | jax.Array]:
            for size, batch in self._image_batches(source, failures):
                sizes.append(size)
                yield self._place(batch, size)

        for number, output in enumerate(self._one_ahead(encode, batches())):
            outputs.append(output)
            done += sizes[number]
            if on_batch is not None:
                on_batch(min(done, len(source)))
        raise_in_all(failures[0] if failures else None)
        return outputs

    def texts(self, texts: Sequence[str], *, kind: str) -> Float[np.ndarray, "T E"]:
        """Embeddings of texts, each different one encoded once, as are those of the same tokens, so
        that theirs are equal; `kind` "caption" or "description" sets the length. Raises ValueError
        where one is not finite.
        """
        if kind not in self.lengths:
            raise ValueError(f"Unknown kind of text {kind!r}; choose one of {list(self.lengths)}.")
        if len(texts) == 0:
            raise ValueError("There are no texts to encode.")
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens, truncated = self._tokens(tuple(row), kind)
        self.truncated_texts += int(truncated.sum())
        tokens, of_text = _different_rows(tokens)
        lengths = None if isinstance(self.tokenizer, PaddedTokenizer) else used_lengths(tokens)
        groups = length_groups(lengths, tokens.shape, padded_size=self._padded_texts)
        rows = [
            group.rows[start : start + self.batch_size]
            for group in groups
            for start in range(0, len(group.rows), self.batch_size)
        ]
        batches = (
            batch
            for group in groups
            for batch in self._text_batches(tokens[group.rows, : group.length])
        )
        parts = list(self._one_ahead(self._encode_texts, batches))
        embed = np.empty((len(tokens), parts[0].shape[1]), np.float32)
        for chosen, part in zip(rows, parts, strict=True):
            embed[chosen] = part[: len(chosen)]
        odd = _rows_not_finite(embed)
        failure = None
        if len(odd):
            first = list(row)[int(np.flatnonzero(of_text == odd[0])[0])]
            failure = ValueError(
                f"The embedding of text {first!r} is not finite ({len(odd)} of {len(tokens)} "
                f"texts). {DIVERGED}"
            )
        raise_in_all(failure)
        return embed[of_text[[row[text] for text in texts]]]

    def _text_batches(self, tokens: Int[np.ndarray, "T L"]) -> Iterator[np.ndarray | jax.Array]:
        for start in range(0, len(tokens), self.batch_size):
            block = tokens[start : start + self.batch_size]
            size = self._padded_size(len(block))
            padded = np.zeros((size, tokens.shape[1]), tokens.dtype)
            padded[: len(block)] = block
            local = padded[list(self._local_rows(size))]
            yield self._place(local, size)

    def _padded_texts(self, count: int) -> int:
        """Rows that are computed for so many texts of one length."""
        whole, rest = divmod(count, self.batch_size)
        return whole * self.batch_size + (self._padded_size(rest) if rest else 0)

    def _tokens(
        self, texts: tuple[str, ...], kind: str
    ) -> tuple[Int[np.ndarray, "T L"], Bool[np.ndarray, "T"]]:
        """Tokens without columns of padding, and which texts were cut.

        Kept, as far as MAX_TOKEN_BYTES go: the intervals of a run ask for the same texts.
        """
        if (kept := self._kept_tokens.get((kind, texts))) is not None:
            return kept
        tokens, truncated = self.tokenizer.encode(list(texts), self.lengths[kind])
        if not isinstance(self.tokenizer, PaddedTokenizer):
            longest = int(used_lengths(tokens).max())
            tokens = tokens[:, : compiled_length(longest, tokens.shape[1])].copy()
        made = tokens, truncated
        held = sum(other.nbytes for other, _ in self._kept_tokens.values())
        if held + tokens.nbytes <= MAX_TOKEN_BYTES:
            self._kept_tokens[kind, texts] = made
        return made

    def _one_ahead(self, encode: Callable[..., Any], batches: Iterator[Any]) -> Iterator[Any]:
        """What the model says about each batch, in order; one is computed while the next one is
        made.
        """
        before: list[Any] = []
        for batch in batches:
            with contextlib.nullcontext() if self._mesh is None else use_mesh(self._mesh):
                before.append(encode(self.params, batch))
            if len(before) > 1:
                yield jax.device_get(before.pop(0))
        yield from map(jax.device_get, before)

    def _image_embed(self, params, pixels):
        return _unit(self._apply_to_images(params, pixels).image_embed)

    def _apply_to_images(self, params, pixels) -> Any:
        images = normalize_images(
            pixels, self.preprocessing.mean, self.preprocessing.std, jnp.float32
        )
        return self.model.apply({"params": params}, images, train=False, method="encode_images")

    def _image_outputs(self, params, pixels):
        output = self._apply_to_images(params, pixels)
        if output.region_embed is None or output.boxes is None:
            return _unit(output.image_embed), None, None
        boxes = output.boxes.astype(jnp.float32)
        return _unit(output.image_embed), _unit(output.region_embed), boxes

    def _text_outputs(self, params, tokens):
        return _unit(self.model.apply({"params": params}, tokens, method="encode_texts"))

    def _image_batches(
        self, source: Source, failures: list[ValueError]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Size of each global batch and this host's rows of it, uint8; the last batch is padded
        with black.

        With several hosts, an image that one of them cannot decode goes to `failures` and all go on
        together: the others would wait for its rows for ever.
        """
        sizes = {
            start: self._padded_size(min(self.batch_size, len(source) - start))
            for start in range(0, len(source), self.batch_size)
        }
        own = [
            start + row
            for start, size in sizes.items()
            for row in self._local_rows(size)
            if start + row < len(source)
        ]
        side, most = self.preprocessing.image_size, len(self._local_rows(self.batch_size))
        decoded = evaluation_batches(
            source,
            self.preprocessing,
            most,
            indices=own,
            num_threads=self._num_threads,
            num_workers=self._num_workers,
        )
        for size in sizes.values():
            padded = np.zeros((len(self._local_rows(size)), side, side, 3), np.uint8)
            nothing = padded[:0], np.zeros(0, int)
            try:
                # Only the last batch is ever short; a host may have no row of it at all.
                images, _ = nothing if failures else next(decoded, nothing)
            except ValueError as error:
                if jax.process_count() == 1:
                    raise
                failures.append(error)
                images, _ = nothing
            padded[: len(images)] = images
            yield size, padded

    def _padded_size(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)

    def _local_rows(self, size: int) -> Sequence[int]:
        return range(size) if self._sharding is None else local_rows(self._sharding, size)

    def _place(self, local: np.ndarray, size: int) -> np.ndarray | jax.Array:
        return local if self._sharding is None else put_rows(local, self._sharding, size)


@contextlib.contextmanager
def errors_about(name: str) -> Iterator[None]:
    """Puts the name of the data in front of what is wrong with it."""
    try:
        yield
    except FailedInAll as error:  # whose type says that every process knows of it
        raise FailedInAll(f"{name}: {error}", elsewhere=error.elsewhere) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _different_rows(
    tokens: Int[np.ndarray, "T L"],
) -> tuple[Int[np.ndarray, "D L"], Int[np.ndarray, "T"]]:
    """The rows that differ, in their order, and which of them each row is."""
    place: dict[bytes, int] = {}
    of_row = np.array([place.setdefault(row.tobytes(), len(place)) for row in tokens], int)
    if len(place) == len(tokens):
        return tokens, of_row
    return tokens[np.unique(of_row, return_index=True)[1]], of_row


def _rows_not_finite(*parts: np.ndarray | None) -> np.ndarray:
    """Indices of the rows that hold NaN or infinity in any of the arrays."""
    odd = [
        ~np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts if part is not None
    ]
    return np.flatnonzero(np.any(odd, axis=0))


def _unit(embed):
    embed = embed.astype(jnp.float32)
    return embed / jnp.maximum(jnp.linalg.norm(embed, axis=-1, keepdims=True), 1e-12)
