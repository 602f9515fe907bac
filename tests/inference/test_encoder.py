import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny_model import WORDS, tiny_model
from toy_encoder import ToyModel, ToySource, record, toy_encoder

from grain_jax.config import MeshConfig
from grain_jax.data.loader import evaluation_batches
from grain_jax.data.records import Selection, evenly_spaced
from grain_jax.inference import encoder as encoder_module
from grain_jax.inference.encoder import Encoder, errors_about
from grain_jax.models.image_text import ImageTextModel
from grain_jax.parallel.processes import FailedInAll
from grain_jax.parallel.sharding import make_mesh


def colours(count: int) -> ToySource:
    names = ["red", "green", "blue"]
    return ToySource(
        *(record(str(i), names[i % 3], names[(i + 1) % 3], names[i % 2]) for i in range(count))
    )


def test_features_are_in_order_unit_length_and_without_padding():
    features = toy_encoder(batch_size=3).images(colours(7))
    assert features.image.shape == (7, 3)
    assert features.image.argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert features.regions.argmax(axis=2)[4].tolist() == [2, 0]
    np.testing.assert_allclose(np.linalg.norm(features.image, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(features.boxes[0, :, 0], [0.25, 0.75])


class InOneCall(ToySource):
    """Records that are read several in a call, as those of a file are, and never one by one."""

    def __getitems__(self, indices):
        return [self.records[i] for i in indices]

    def __getitem__(self, index):
        raise AssertionError("read one by one")


def test_records_are_read_several_in_one_call():
    several = InOneCall(*colours(7).records)
    np.testing.assert_array_equal(
        toy_encoder(batch_size=3).images(several).image,
        toy_encoder(batch_size=3).images(colours(7)).image,
    )


@pytest.mark.parametrize("num_workers", [0, 3])
def test_images_are_decoded_by_the_processes_that_were_given(monkeypatch, num_workers):
    given = []

    def spy(*arguments, num_workers, **options):
        given.append(num_workers)
        return evaluation_batches(*arguments, num_workers=0, **options)

    monkeypatch.setattr(encoder_module, "evaluation_batches", spy)
    toy_encoder(num_workers=num_workers).images(colours(2))
    assert given == [num_workers]


def test_a_model_without_regions_has_none():
    features = toy_encoder(regions=False).images(colours(2))
    assert features.regions is None
    assert features.boxes is None


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_changes_nothing(shape):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[:8])
    alone, spread = toy_encoder(batch_size=5), toy_encoder(batch_size=5, mesh=mesh)
    assert spread.batch_size % (shape[0] * shape[1]) == 0
    for name in ("image", "regions", "boxes"):
        np.testing.assert_array_equal(
            getattr(alone.images(colours(11)), name), getattr(spread.images(colours(11)), name)
        )
    texts = ["a red thing", "blue", "a green thing"] * 4
    np.testing.assert_array_equal(
        alone.texts(texts, kind="caption"), spread.texts(texts, kind="caption")
    )


def test_equal_texts_are_encoded_once_and_long_ones_counted(monkeypatch):
    encoder = toy_encoder()
    asked: list[str] = []
    encode = encoder.tokenizer.encode

    def spy(texts, length):
        asked.extend(texts)
        return encode(texts, length)

    monkeypatch.setattr(encoder.tokenizer, "encode", spy)
    embed = encoder.texts(["red", "blue", "red", "a b c d red"], kind="description")
    assert asked == ["red", "blue", "a b c d red"]
    assert embed[:3].argmax(axis=1).tolist() == [0, 2, 0]
    assert encoder.truncated_texts == 1
    with pytest.raises(ValueError, match="kind"):
        encoder.texts(["red"], kind="title")
    with pytest.raises(ValueError, match="no texts"):
        encoder.texts([], kind="caption")


@pytest.fixture
def traced(monkeypatch):
    """Shapes of the images for which the toy was traced: a compilation each."""
    shapes = []
    encode_images = ToyModel.encode_images

    def spy(self, images, *, train=False):
        shapes.append(images.shape)
        return encode_images(self, images, train=train)

    monkeypatch.setattr(ToyModel, "encode_images", spy)
    return shapes


def test_one_compilation_serves_all_batches_and_new_parameters(traced):
    encoder = toy_encoder(batch_size=2)
    encoder.images(colours(5))
    encoder.with_params({"logit_scale": np.float32(0)}).images(colours(9))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("shape", "sizes"), [(None, 4), ((8, 1, 1), 3), ((2, 2, 2), 3)]
)  # 1, 2, 16, 20; 8, 16, 24; 4, 16, 20
def test_small_batches_change_nothing_but_their_size(shape, sizes, traced):
    mesh = None if shape is None else make_mesh(MeshConfig(*shape), jax.devices()[:8])
    whole = toy_encoder(batch_size=20)
    expected = {count: whole.images(colours(count)) for count in (1, 9, 21, 20, 2)}
    traced.clear()
    small = toy_encoder(batch_size=20, mesh=mesh, smallest_batch=1)
    done = []
    for count in expected:
        for name in ("image", "regions", "boxes"):
            np.testing.assert_array_equal(
                getattr(small.images(colours(count), on_batch=done.append), name),
                getattr(expected[count], name),
            )
        texts = ["red", "blue", "green"] + [f"a red {i}" for i in range(count)]
        np.testing.assert_array_equal(
            small.texts(texts, kind="caption"), whole.texts(texts, kind="caption")
        )
    assert done[:8] == [1] * 3 + [9] * 3 + ([21, 21] if shape == (8, 1, 1) else [20, 21])
    assert len(traced) == sizes


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="smallest_batch must be at least 1"):
        toy_encoder(smallest_batch=0)


def test_trimmed_padding_does_not_change_a_text(monkeypatch):
    encoder = toy_encoder()
    short = encoder.texts(["a red thing"], kind="caption")
    monkeypatch.setattr("grain_jax.inference.length_groups.SHORTEST_LENGTH", 2)
    np.testing.assert_array_equal(short, encoder.texts(["a red thing"], kind="caption"))


def test_empty_sources_are_refused():
    with pytest.raises(ValueError, match="no images"):
        toy_encoder().images(ToySource())


@pytest.mark.parametrize(
    ("damaged", "other", "message"),
    [(True, b"", "'broken' cannot"), (False, b"-it is damaged", "process 1: it is damaged")],
)
def test_what_one_process_cannot_decode_stops_all_after_the_last_batch(
    monkeypatch, damaged, other, message
):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gathered = []

    def gather(own):
        gathered.append(bool(own.any()))
        return np.stack([own, np.frombuffer(other.ljust(len(own), b"\0"), np.uint8)])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    encoder = toy_encoder()
    batches = []
    records = [record("red", "red") for _ in range(3 * encoder.batch_size)]
    if damaged:
        records[0] = dataclasses.replace(records[0], id="broken", image=b"no image")
    with pytest.raises(ValueError, match=message):
        encoder.images(ToySource(*records), on_batch=batches.append)
    assert (gathered, len(batches)) == ([damaged], 3)


def test_a_limit_spreads_over_the_whole_source():
    source = colours(100)
    few = evenly_spaced(source, 5)
    assert isinstance(few, Selection)
    assert [few[i].id for i in range(len(few))] == ["0", "25", "50", "74", "99"]
    assert evenly_spaced(source, 100) is source


def test_images_are_decoded_by_the_threads_asked_for(monkeypatch):
    asked = []

    def spy(*arguments, num_threads, **options):
        asked.append(num_threads)
        return evaluation_batches(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr("grain_jax.inference.encoder.evaluation_batches", spy)
    features = toy_encoder(num_threads=5).images(colours(7))
    assert features.image.argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert asked == [5]


def test_texts_are_tokenized_once_for_all_intervals(monkeypatch):
    asked = []
    encoder = toy_encoder()
    encode = encoder.tokenizer.encode

    def spy(texts, length):
        asked.append((*texts, length))
        return encode(texts, length)

    monkeypatch.setattr(encoder.tokenizer, "encode", spy)
    texts = ["red", "a blue thing and another long one that is cut"]
    first = encoder.texts(texts, kind="caption")
    later = encoder.with_params(encoder.params)
    np.testing.assert_array_equal(later.texts(texts, kind="caption"), first)
    assert later.truncated_texts == encoder.truncated_texts == 1
    assert len(asked) == 1
    encoder.texts(texts, kind="description")  # of another length
    encoder.texts(texts[:1], kind="caption")
    assert len(asked) == 3
    monkeypatch.setattr("grain_jax.inference.encoder.MAX_TOKEN_BYTES", 0)
    for _ in range(2):
        encoder.texts(["blue"], kind="caption")
    assert len(asked) == 5  # nothing more is kept


class Diverged(ToyModel):
    """Divides by what it sees: nothing, in a black region or in a text without a colour."""

    def encode_images(self, images, *, train=False):
        output = super().encode_images(images, train=train)
        regions = output.region_embed
        return output.replace(region_embed=regions / regions.sum(axis=-1, keepdims=True))

    def encode_texts(self, tokens):
        embed = super().encode_texts(tokens)
        return embed / embed.sum(axis=-1, keepdims=True)


def test_what_is_not_finite_is_named_with_its_data():
    encoder = toy_encoder()
    encoder.model = Diverged()
    assert np.isfinite(encoder.images(colours(4)).regions).all()  # the padding of a batch may be
    black = ToySource(*colours(4).records, record("night", "red", "green"))
    with (
        pytest.raises(ValueError, match=r"^Split 'dev': .*'night' is not finite \(1 of 5 images\)"),
        errors_about("Split 'dev'"),
    ):
        encoder.images(black)
    encoder.texts(["red"], kind="caption")
    with pytest.raises(ValueError, match=r"text 'nothing' is not finite \(1 of 2 texts\)"):
        encoder.texts(["red", "nothing"], kind="caption")


def test_an_error_that_every_process_knows_of_stays_one() -> None:
    """Training saves in all of them over such an error, and in none over another."""
    with (
        pytest.raises(FailedInAll, match="Split 'a': process 1: bad") as raised,
        errors_about("Split 'a'"),
    ):
        raise FailedInAll("process 1: bad", elsewhere=True)
    assert raised.value.elsewhere


@pytest.mark.parametrize("mesh", [None, pytest.param((4, 2, 1), marks=pytest.mark.slow)])
def test_texts_of_all_lengths_are_encoded_as_alone(mesh):
    spread = None if mesh is None else make_mesh(MeshConfig(*mesh), jax.devices()[:8])
    model = tiny_model(text__context_length=64)
    model.config.data.caption_length = 64
    encoder = Encoder.from_bundle(model, batch_size=16, mesh=spread)
    texts = [f"a photo of {'a bird and ' * n}" for n in range(19)]
    texts += [f"the {colour} {part}" for colour in ("red", "blue") for part in WORDS] * 4
    shapes: list[tuple[int, ...]] = []
    encode = ImageTextModel.encode_texts

    def spy(self, tokens):
        shapes.append(tokens.shape)
        return encode(self, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageTextModel, "encode_texts", spy)
        together = encoder.texts(texts, kind="caption")
    assert sorted(shapes) == [(16, 16), (16, 64)]  # compiled once each
    alone = np.concatenate([encoder.texts([text], kind="caption") for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_the_logit_scale_is_that_of_training():
    encoder = toy_encoder()
    assert encoder.logit_scale == pytest.approx(10)
    weaker = encoder.with_params({"logit_scale": np.float32(-3.0)})
    assert weaker.logit_scale == 1  # the model's own least
