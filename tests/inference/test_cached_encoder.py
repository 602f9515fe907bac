"""What is not encoded a second time, and what is."""

import dataclasses
import errno
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image as ImageModule
from toy_encoder import SIZE, ToySource, bird_set, make_image, record, toy_encoder

import grain_jax
from grain_jax.config import SyntheticBirdsConfig
from grain_jax.data.classification.folders import ImageFiles, load_zero_shot
from grain_jax.data.compositional import questions
from grain_jax.data.compositional.questions import CroppedImages
from grain_jax.data.grounding.crops import Crops
from grain_jax.data.records import Record, Selection, evenly_spaced
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource
from grain_jax.data.transforms import Preprocessing, decode_image
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.array_store import ArrayStore
from grain_jax.inference.cached_encoder import CachedEncoder, open_cache
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.fingerprints import code_sha256, images_sha256, params_sha256
from grain_jax.models.learned import Learned

ALPHAS = (1.0, 0.5, 0.0)


@pytest.fixture
def store(tmp_path):
    return ArrayStore(tmp_path / "cache")


def over(store, encoder: Encoder | None = None) -> CachedEncoder:
    """As a process of its own would open it."""
    return CachedEncoder.of(encoder or toy_encoder(), ArrayStore(store.folder))


def mute(encoder: CachedEncoder) -> CachedEncoder:
    """One whose model says nothing."""

    def called(params, batch):
        raise AssertionError("the model was called")

    encoder.__dict__.update(_encode_images=called, _encode_texts=called)
    return encoder


def changed(**fields) -> Encoder:
    encoder = toy_encoder()
    encoder.__dict__.update(fields)
    return encoder


def counts(encoder: CachedEncoder) -> tuple[int, int]:
    return encoder.encoded_images, encoder.encoded_texts


def test_a_second_evaluation_does_not_call_the_model(store):
    def evaluated(encoder):
        return evaluate_zero_shot(encoder, bird_set(), alphas=ALPHAS, details=True)

    plain = evaluated(toy_encoder())
    first = over(store)
    assert evaluated(first) == plain
    assert counts(first) == (3, 8)  # two prompts, three descriptions for images and for regions
    second = mute(over(store))
    assert evaluated(second) == plain
    assert counts(second) == (0, 0)
    assert (second.read_images, second.read_texts) == (3, 8)


def test_a_text_is_counted_once_as_read_or_encoded(store):
    first = over(store)
    first.texts(["red thing", "blue thing"], kind="caption")
    first.texts(["red thing", "green thing"], kind="caption")  # one was written a moment ago
    assert (first.read_texts, first.encoded_texts) == (0, 3)
    second = over(store)
    for _ in range(2):
        second.texts(["red thing", "a fourth"], kind="caption")
    assert (second.read_texts, second.encoded_texts) == (1, 1)


def test_what_is_read_is_what_was_encoded_to_the_last_bit(store):
    source, texts = bird_set().source, ["red thing", "blue thing", "red thing"]
    first = over(store)
    features, embed = first.images(source), first.texts(texts, kind="caption")
    again = mute(over(store))
    found = again.images(source)
    for name in ("image", "regions", "boxes"):
        assert getattr(found, name).tobytes() == getattr(features, name).tobytes()
    assert again.texts(texts, kind="caption").tobytes() == embed.tobytes()
    np.testing.assert_array_equal(embed[0], embed[2])
    np.testing.assert_array_equal(embed, toy_encoder().texts(texts, kind="caption"))


def test_other_prompts_encode_their_own_texts_only(store):
    evaluate_zero_shot(over(store), bird_set(), alphas=ALPHAS)
    other = over(store)
    evaluate_zero_shot(other, bird_set(templates=("one {}", "a {} bird")), alphas=ALPHAS)
    assert counts(other) == (0, 2)


@pytest.mark.parametrize(
    "other",
    [
        changed(params={"scale": np.float32(1)}),
        changed(model=toy_encoder(regions=False).model),
        changed(preprocessing=Preprocessing(SIZE, mean=(0.1, 0.0, 0.0), std=(1.0, 1.0, 1.0))),
        changed(
            preprocessing=Preprocessing(SIZE, "crop", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        ),
        changed(learned=Learned(regions=False)),
    ],
    ids=["weights", "model", "mean", "resize", "learned"],
)
def test_images_of_another_model_or_preprocessing_are_encoded(store, other):
    source = bird_set().source
    over(store).images(source)
    encoder = over(store, other)
    expected = other.images(source)
    np.testing.assert_array_equal(encoder.images(source).image, expected.image)
    assert encoder.encoded_images == 3


def test_texts_of_another_length_tokenizer_or_model_are_encoded(store):
    over(store).texts(["red part"], kind="caption")
    longer = changed(lengths={"caption": 9, "description": 4})
    weights = changed(params={"scale": np.float32(1)})
    tokenizer = changed(tokenizer=toy_encoder().tokenizer)
    tokenizer.tokenizer.spec = lambda: {"words": ["other"]}
    for other in (longer, weights, tokenizer):
        encoder = over(store, other)
        encoder.texts(["red part"], kind="caption")
        assert encoder.encoded_texts == 1
    kind = over(store)
    kind.texts(["red part"], kind="description")
    assert kind.encoded_texts == 1
    cropped = over(store, changed(preprocessing=Preprocessing(SIZE, "crop")))
    cropped.texts(["red part"], kind="caption")
    assert cropped.encoded_texts == 0  # no text is cropped


def test_one_other_image_is_noticed(store):
    colours = ["red", "green", "blue"]
    records = [record(str(i), colours[i % 3]) for i in range(5)]
    over(store).images(ToySource(*records))
    pixels = make_image("red")
    pixels[3, 3, 2] = 1
    for other in (
        [*records[:4], dataclasses.replace(records[4], image=pixels)],
        [records[1], records[0], *records[2:]],
        records[:4],
    ):
        encoder = over(store)
        encoder.images(ToySource(*other))
        assert encoder.encoded_images == len(other)
    renamed = [dataclasses.replace(one, id=f"new-{one.id}", label="x") for one in records]
    encoder = mute(over(store))
    encoder.images(ToySource(*renamed))  # of labels and names no embedding knows


def test_files_are_known_by_their_content(tmp_path, store):
    for name, colour in (("a.png", 1), ("b.png", 2)):
        (tmp_path / name).write_bytes(bytes([colour]) * 10)
    source = ImageFiles(tmp_path, ("a.png", "b.png"), ("x", "y"))
    before = images_sha256(source)
    (tmp_path / "b.png").touch()
    assert images_sha256(source) == before
    (tmp_path / "b.png").write_bytes(bytes([3]) * 10)  # of the same size
    assert images_sha256(source) != before
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png"):
        images_sha256(source)


@pytest.mark.parametrize("limit", [2000, 1000])
def test_each_row_group_of_a_table_is_read_once(tmp_path, monkeypatch, limit):
    images = [str(i).encode() for i in range(2000)]
    table = pyarrow.table({"image": images, "label": ["a", "b"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    source = load_zero_shot(tmp_path / "t.parquet").source
    read: list[int] = []
    read_row_group = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self, number, **options):
        read.append(number)
        return read_row_group(self, number, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    chosen = evenly_spaced(source, limit)
    found = images_sha256(chosen)
    assert read == list(range(20))
    assert found == images_sha256(ToySource(*(chosen[i] for i in range(len(chosen)))))


def test_drawn_images_are_known_by_their_settings_and_not_drawn():
    def birds(**changes) -> SyntheticBirdSource:
        settings = SyntheticBirdsConfig(**({"num_eval_images": 9} | changes))
        source = SyntheticBirdSource(settings, "seen", 64)
        return evenly_spaced(source, 4)

    class Undrawn(SyntheticBirdSource):
        def __getitem__(self, index, /) -> Record:
            raise AssertionError("drawn")

    whole = SyntheticBirdSource(SyntheticBirdsConfig(num_eval_images=9), "seen", 64)
    assert images_sha256(Undrawn(whole.config, "seen", 64)) == images_sha256(whole)
    found = {images_sha256(one) for one in (whole, birds(), birds(seed=5))}
    assert len(found) == 3


def test_weights_are_known_by_names_shapes_and_bytes():
    weights = {"a": jnp.arange(4.0), "b": {"c": np.zeros((2, 2), np.float32)}}
    same = {"b": {"c": jnp.zeros((2, 2))}, "a": np.arange(4, dtype=np.float32)}
    assert params_sha256(weights) == params_sha256(same)
    others = (
        {**weights, "a": jnp.arange(4.0).at[3].set(np.nextafter(np.float32(3), np.float32(4)))},
        {**weights, "a": jnp.arange(4.0).reshape(2, 2)},
        {**weights, "a": np.arange(4.0).view(np.int64)},
        {"d": weights["a"], "b": weights["b"]},
        {**weights, "a": jnp.arange(4.0).astype(jnp.bfloat16)},
    )
    assert len({params_sha256(other) for other in (weights, *others)}) == 6


def test_cut_texts_are_counted_where_they_are_read_too(store):
    texts = ["a b c d e f g h i j k", "red"]
    first, second = over(store), mute(over(store))
    for encoder in (first, second):
        encoder.texts(texts, kind="description")
        assert encoder.truncated_texts == 1


def test_with_other_parameters_nothing_is_kept(store):
    cached = over(store)
    cached.texts(["red"], kind="caption")
    other = cached.with_params({"scale": np.float32(2)})
    other.texts(["green"], kind="caption")
    again = over(store)
    again.texts(["red", "green"], kind="caption")
    assert again.encoded_texts == 1


def test_progress_is_told_of_images_that_are_read(store):
    counts = []
    over(store).images(bird_set().source)
    mute(over(store)).images(bird_set().source, on_batch=counts.append)
    assert counts == [3]


def test_a_full_disk_does_not_end_an_evaluation(store, monkeypatch):
    noted = []

    def full(key, arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    encoder = CachedEncoder.of(toy_encoder(), store, note=noted.append)
    monkeypatch.setattr(store, "write", full)
    assert encoder.images(bird_set().source).image.shape == (3, 3)
    assert "could not be kept" in noted[0]


def test_what_is_larger_than_the_cache_is_said(store):
    noted = []
    small = ArrayStore(store.folder, max_bytes=10)
    CachedEncoder.of(toy_encoder(), small, note=noted.append).images(bird_set().source)
    assert "--cache_gib" in noted[0]


def test_mistakes_are_those_of_any_encoder(store):
    encoder = over(store)
    with pytest.raises(ValueError, match="Unknown kind of text"):
        encoder.texts(["red"], kind="title")
    with pytest.raises(ValueError, match="no texts"):
        encoder.texts([], kind="caption")
    with pytest.raises(ValueError, match="no images"):
        encoder.images(ToySource())
    damaged = dataclasses.replace(record("bad", "red"), image=b"not an image")
    with pytest.raises(ValueError, match="bad"):
        encoder.images(ToySource(record("0", "red"), damaged))


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert open_cache("none") is None
    assert open_cache("auto").folder == tmp_path / "home" / "grain_jax" / "embeddings"
    assert open_cache(str(tmp_path / "own")).folder == tmp_path / "own"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot hold embeddings"):
        open_cache(str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_cache("auto") is None


BOXES = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 1]], np.float32)


def crops(boxes=BOXES) -> Crops:
    source = ToySource(record("a", "red", "green", "blue"), record("b", "blue", "green", "red"))
    return Crops(source, np.array([0, 0, 1]), boxes)


def test_crops_are_known_by_their_image_and_box(store, monkeypatch):
    first = over(store).whole_images(crops())
    np.testing.assert_array_equal(first, toy_encoder().images(crops()).image)
    monkeypatch.setattr(Crops, "__getitem__", lambda self, index: pytest.fail("a crop was made"))
    again = mute(over(store))
    np.testing.assert_array_equal(again.whole_images(crops()), first)
    assert again.read_images == 3
    keys = {images_sha256(Selection(crops(), [row])) for row in range(3)}
    assert len(keys) == 3  # another box, another image
    moved = BOXES.copy()
    moved[1, 0] = np.nextafter(moved[1, 0], np.float32(1))
    assert images_sha256(crops(moved)) != images_sha256(crops())
    assert images_sha256(Selection(crops(moved), [0])) in keys


def test_questions_with_a_box_are_known_by_it(tmp_path):
    ImageModule.fromarray(make_image("red", "green")).save(tmp_path / "a.png")
    found = [
        images_sha256(CroppedImages(tmp_path, ("a.png",), (box,)))
        for box in (None, (0, 0, 2, 2), (0, 0, 2, 3))
    ]
    assert len(set(found)) == 3
    assert found[0] == images_sha256(ImageFiles(tmp_path, ("a.png",), ("",)))


def test_crops_that_are_made_by_other_rules_are_not_one_image(tmp_path):
    """(0, 0, 1, 1) is a whole image in fractions, and one pixel in pixels."""
    ImageModule.fromarray(make_image("red", "green")).save(tmp_path / "a.png")
    files = ImageFiles(tmp_path, ("a.png",), ("",))
    of_fractions = Crops(files, np.array([0]), np.array([[0.0, 0.0, 1.0, 1.0]], np.float32))
    of_pixels = CroppedImages(tmp_path, ("a.png",), ((0, 0, 1, 1),))
    assert of_fractions[0].image.shape != of_pixels[0].image.shape
    assert images_sha256(of_fractions) != images_sha256(of_pixels)


def test_an_image_of_questions_is_decoded_once_for_boxes_that_follow_each_other(
    tmp_path, monkeypatch
):
    for name in ("a.png", "b.png"):
        ImageModule.fromarray(make_image("red", "green")).save(tmp_path / name)
    decoded = []
    monkeypatch.setattr(
        questions, "decode_image", lambda image: decoded.append(image) or decode_image(image)
    )
    files = ("a.png", "a.png", "b.png", "b.png", "a.png")
    boxes = tuple((0, 0, 1, side) for side in (1, 2, 1, 2, 3))
    source = CroppedImages(tmp_path, files, boxes)
    assert [source[i].image.shape[0] for i in range(5)] == [1, 2, 1, 2, 3]
    assert len(decoded) == 3
    assert source == CroppedImages(tmp_path, files, boxes)


@pytest.mark.parametrize("name", ["boxes.py", "data/image_variants.py", "models/vit.py"])
def test_code_that_decides_about_embeddings_is_part_of_the_keys(tmp_path, monkeypatch, name):
    root = Path(grain_jax.__file__).parent
    shutil.copytree(root, tmp_path / "grain_jax", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(grain_jax, "__file__", str(tmp_path / "grain_jax" / "__init__.py"))
    before = code_sha256()
    (tmp_path / "grain_jax" / name).write_text("")
    assert code_sha256() != before


def test_regions_are_not_kept_where_only_whole_images_are_asked_for(store):
    whole = over(store).whole_images(bird_set().source)
    np.testing.assert_array_equal(mute(over(store)).whole_images(bird_set().source), whole)
    (key,) = store.keys("whole-")
    assert set(store.read(key)) == {"image"}
    encoder = over(store)
    assert encoder.images(bird_set().source).regions is not None
    assert encoder.encoded_images == 3  # the regions were not there
    other = evenly_spaced(bird_set().source, 2)
    features = over(store).images(other)
    np.testing.assert_array_equal(mute(over(store)).whole_images(other), features.image)
