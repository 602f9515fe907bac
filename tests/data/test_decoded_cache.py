"""`prepare --decoded_cache`: the pixels that are stored, trained on, and read by others."""

import dataclasses
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grain_jax import prepare
from grain_jax.config import DataConfig
from grain_jax.data.batch import Batch
from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.decoded_cache import (
    MAX_ASPECT,
    MAX_SIDE,
    DecodedCache,
    cache_notes,
    decoded_caches,
)
from grain_jax.data.loader import evaluation_batches, training_batches
from grain_jax.data.mixture import Mixture
from grain_jax.data.records import Source
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.data.transforms import Preprocessing, decode_image
from grain_jax.data.uncompressed_png import view_uncompressed

TOKENIZER = WordTokenizer(["photo", *(f"n{i}" for i in range(12))])
SIZES = ((40, 30), (30, 40), (64, 16), (20, 12), (500, 20), (24, 24))  # width, height
CONFIG = DataConfig(caption_length=6, description_length=4, max_regions=2, prefetch_batches=1)


def photo(index: int) -> Image.Image:
    coarse = np.random.default_rng(index).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize(SIZES[index % len(SIZES)], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Twelve JPEG files of several shapes, with a box each."""
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for index in range(12):
        photo(index).save(folder / f"{index}.jpg", quality=90)
        region = {"bbox": [0.25, 0.5, 0.75, 1], "description": f"n{index}"}
        entry = {"image": f"{index}.jpg", "captions": [f"photo n{index}"], "regions": [region]}
        lines.append(json.dumps(entry))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def built(collection: Path, out: Path, cache: str | None, **changes) -> RecordSource:
    size = None if cache is None else DecodedCache.parse(cache)
    spec = DatasetBuildSpec(
        "jsonl", collection / "train.jsonl", collection, out, decoded_cache=size, **changes
    )
    build_split(spec, workers=1)
    return RecordSource(out, "train")


def train(source: Source, image_size: int, **changes) -> list[Batch]:
    config = dataclasses.replace(CONFIG, **changes)
    loader = training_batches(
        source, config, TOKENIZER, image_size=image_size, batch_size=4, seed=0
    )
    with loader:
        return [next(loader) for _ in range(6)]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_squares_give_the_batches_of_the_original_files(collection, tmp_path):
    """Bit by bit: the resize of training is done once, beforehand."""
    originals = built(collection, tmp_path / "files", None)
    squares = built(collection, tmp_path / "squares", "16x16")
    assert_equal(train(squares, 16), train(originals, 16))
    flipped = {"flip_probability": 0.5}
    assert_equal(train(squares, 16, **flipped), train(originals, 16, **flipped))
    assert_equal(train(squares, 16, cache="memory"), train(originals, 16))
    spec = Preprocessing(image_size=16)
    for (found, _), (expected, _) in zip(
        evaluation_batches(squares, spec, 5), evaluation_batches(originals, spec, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.multiprocess
def test_processes_and_crops_take_it(collection, tmp_path):
    source = built(collection, tmp_path / "short", "20")
    crops = {"resize": "crop", "flip_probability": 0.5, "prefetch_batches": 4}
    assert_equal(train(source, 16, num_workers=1, **crops), train(source, 16, **crops))


def test_stored_pixels_are_those_of_the_file_made_smaller(collection, tmp_path):
    source = built(collection, tmp_path / "short", "20")
    for index in range(12):
        width, height = SIZES[index % len(SIZES)]
        original = Image.open(collection / f"{index}.jpg")
        short, long = min(width, height), max(width, height)
        scale = min(20 / short, 80 / long)
        if scale < 1:
            size = (round(width * scale), round(height * scale))
            original = original.resize(size, Image.Resampling.BICUBIC)
        stored = source[index]
        assert isinstance(stored.image, bytes)
        view = view_uncompressed(stored.image)
        assert view is not None
        np.testing.assert_array_equal(view, np.asarray(original))
        assert stored.regions[0].box_xyxy == (0.25, 0.5, 0.75, 1)  # fractions, of any size


def test_others_open_the_folder(collection, tmp_path):
    """TFDS decodes the images itself, as Pillow does the bytes."""
    source = built(collection, tmp_path / "squares", "16x16")
    decoded = tfds.builder_from_directory(tmp_path / "squares").as_data_source("train")
    for index in range(12):
        record = source[index]
        assert isinstance(record.image, bytes)
        expected = decode_image(record.image)
        np.testing.assert_array_equal(decoded[index]["image"], expected)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record.image))), expected)


def test_the_inspection_reads_it(collection, tmp_path, capsys):
    built(collection, tmp_path / "squares", "16x16")
    report = tmp_path / "inspection"
    assert prepare.main(["inspect", str(tmp_path / "squares"), f"--output={report}"]) == 0
    printed = capsys.readouterr().out
    assert "927 an image" in printed  # pixels of 16 x 16, and the head of a PNG
    assert (report / "report.md").exists()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 400), st.booleans())
def test_sizes_are_those_of_encoded_images(height, width, side, square):
    cache = DecodedCache(side, square)
    assert DecodedCache.parse(str(cache)) == cache
    stored = cache.shape(height, width)
    if square:
        assert stored == (side, side)
        return
    assert min(stored) <= side
    assert max(stored) <= MAX_ASPECT * side
    if min(height, width) <= side and max(height, width) <= MAX_ASPECT * side:
        assert stored == (height, width)  # never larger
    elif max(height, width) <= MAX_ASPECT * min(height, width):
        assert min(stored) == side
        assert abs(stored[0] * width - stored[1] * height) <= max(height, width)


@pytest.mark.parametrize("cache", [DecodedCache(20), DecodedCache(9, square=True)])
def test_bytes_are_those_of_the_file(cache):
    for index in range(len(SIZES)):
        pixels = np.asarray(photo(index))
        assert len(cache.encode(pixels)) == cache.num_bytes(*pixels.shape[:2])


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "224x", "x224", "224x112", "1e3", str(MAX_SIDE + 1)]
)
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="number of pixels"):
        DecodedCache.parse(text)


def command(collection: Path, out: Path, *more: str) -> list[str]:
    return [
        "--from=jsonl",
        f"--input={collection / 'train.jsonl'}",
        f"--images={collection}",
        f"--output={out}",
        "--workers=1",
        *more,
    ]


def test_the_command_says_how_large_it_will_be_and_what_it_was(collection, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare.main(command(collection, out, "--decoded_cache=16x16")) == 0
    printed = capsys.readouterr()
    said = " ".join(printed.err.split())
    assert "squashed to 16 x 16 pixels: 927 bytes each, 0 MiB for 12 records" in said
    assert re.search(rf"{out.name} has [\d.,]+ [GMT]iB free\.", said)
    assert "images stored decoded" in printed.out
    report = json.loads((out / "report-train.json").read_text())
    assert report["plan"]["decoded_cache"] == "16x16"
    source = RecordSource(out, "train[:50%]")
    assert source.decoded_caches == (DecodedCache(16, square=True),)
    # The same command finds it built; another size is another data set.
    assert prepare.main(command(collection, out, "--decoded_cache=16x16")) == 0
    assert "bytes each" not in capsys.readouterr().err
    for other in ("--decoded_cache=16", "--decoded_cache=17x17", "--max_image_side=16"):
        assert prepare.main(command(collection, out, other)) == 2
        error = capsys.readouterr().err
        assert "built from something else" in error
        assert "decoded_cache" in error
    both = command(collection, out, "--decoded_cache=16", "--max_image_side=16")
    assert prepare.main(both) == 2
    assert "give one of them" in capsys.readouterr().err
    assert prepare.main(command(collection, out, "--decoded_cache=16x17")) == 2
    assert "number of pixels" in capsys.readouterr().err


def test_the_size_that_is_said_is_that_of_the_records(collection, tmp_path):
    notes: list[str] = []
    out = tmp_path / "out"
    spec = DatasetBuildSpec(
        "jsonl", collection / "train.jsonl", collection, out, decoded_cache=DecodedCache(20)
    )
    build_split(spec, workers=1, note=notes.append)
    source = RecordSource(out, "train")
    mean = round(sum(len(source[i].image) for i in range(12)) / 12)
    assert notes[0].startswith(
        "Images are stored decoded, with a short side of at most 20 pixels: "
        f"{mean:,} bytes each in the mean of 12,"
    )


def test_it_says_where_the_disk_is_too_small(collection, tmp_path, monkeypatch):
    def usage(path: Path) -> SimpleNamespace:
        assert path in (tmp_path / "out", *tmp_path.parents, tmp_path)
        return SimpleNamespace(free=12 * 927 - 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    notes: list[str] = []
    size = DecodedCache(16, square=True)
    spec = DatasetBuildSpec(
        "jsonl", collection / "train.jsonl", collection, tmp_path / "out", decoded_cache=size
    )
    build_split(spec, workers=1, note=notes.append)
    assert notes[0].endswith("out has 0 MiB free, which is not enough.")


def test_shards_are_rebuilt_for_another_size(collection, tmp_path):
    """An interrupted build of one size leaves nothing that the next takes for its own."""
    out = tmp_path / "out"
    spec = DatasetBuildSpec(
        "jsonl", collection / "train.jsonl", collection, out, decoded_cache=DecodedCache(20)
    )

    def interrupt(_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_split(spec, workers=1, progress=interrupt)
    assert list((out / ".building" / "train").glob("*.array_record"))
    assert (
        built(collection, out, "16x16")[0].image
        == built(collection, tmp_path / "undisturbed", "16x16")[0].image
    )


class Stored:
    """A source of this stored size."""

    def __init__(self, *sizes: str) -> None:
        self.decoded_caches = tuple(map(DecodedCache.parse, sizes))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int, /):
        raise NotImplementedError


def notes_of(*sizes: str, image_size: int = 224, **data: object) -> list[str]:
    return cache_notes(Stored(*sizes), data=DataConfig(**data), image_size=image_size)


def test_a_run_notes_a_size_that_does_not_fit():
    assert notes_of() == []
    assert notes_of("224x224") == notes_of("256") == notes_of("224") == []
    (note,) = notes_of("128x128", "224")
    assert "--decoded_cache=128x128" in note
    assert "--decoded_cache=224x224" in note
    (note,) = notes_of("224", resize="crop")
    assert "158 to 224 pixels" in note
    assert "--decoded_cache=317" in note
    assert notes_of("317", resize="crop") == []
    (note,) = notes_of("224x224", interpolation="bilinear")
    assert "data.interpolation" in note
    (note,) = notes_of("224", image_size=MAX_SIDE + 1)
    assert f"--decoded_cache={MAX_SIDE} " in note  # which `parse` takes
    (note,) = cache_notes(
        Stored("224"), Stored("128", "224"), data=DataConfig(), image_size=224
    )  # of the images to evaluate on
    assert "at most 128 pixels" in note
    with pytest.raises(ValueError, match=r'data\.resize = "crop"') as raised:
        notes_of("224x224", resize="crop")
    assert "--decoded_cache=224." in str(raised.value)


def test_sizes_of_a_mixture_are_those_of_its_sets():
    mixed = Mixture(
        [Stored("224"), Stored(), Stored("16x16", "224")], [Fraction(1)] * 3, ["a", "b", "c"]
    )
    assert decoded_caches(mixed) == (DecodedCache(224), DecodedCache(16, square=True))


BUILT_BY_TWO = """
import sys
from pathlib import Path
from grain_jax.data import build_dataset
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.decoded_cache import DecodedCache
if __name__ == "__main__":
    build_dataset.MIN_SHARD = 20
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    cache = DecodedCache.parse("96x96")
    spec = DatasetBuildSpec("jsonl", folder / "train.jsonl", folder, out, decoded_cache=cache)
    build_dataset.build_split(spec, workers=2)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_workers_and_a_kill_change_nothing(tmp_path):
    """SIGKILL of the command while its workers write; the next one keeps what was finished."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for index in range(240):
        photo(index).resize((900, 600)).save(folder / f"{index}.jpg", quality=90)
        lines.append(json.dumps({"image": f"{index}.jpg", "captions": [f"photo n{index}"]}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    expected = built(folder, tmp_path / "expected", "96x96")

    script, out = tmp_path / "build.py", tmp_path / "out"
    script.write_text(BUILT_BY_TWO)
    process = subprocess.Popen([sys.executable, str(script), str(folder), str(out)])
    finished: dict[str, int] = {}
    while not finished:
        assert process.poll() is None, "it ended before it could be killed"
        # A shard's statistics are written last: without them it is made again.
        done = (out / ".building" / "train").glob("[!.]*.json")
        work = [path.with_suffix(".array_record") for path in done]
        finished = {path.name: path.stat().st_ino for path in work}
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    subprocess.run([sys.executable, str(script), str(folder), str(out)], check=True)
    shards = {path.stat().st_ino for path in out.glob("*.array_record-*")}
    assert len(shards) == 12
    assert set(finished.values()) <= shards
    source = RecordSource(out, "train")
    assert source.decoded_caches == (DecodedCache(96, square=True),)
    assert [source[i] for i in range(240)] == [expected[i] for i in range(240)]
