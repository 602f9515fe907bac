"""`evaluate leaks`: from two sets of images to pairs, a file, and metrics without them."""

import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from labelled_tars import write_tar
from PIL import Image
from toy_encoder import toy_model

from grain_jax import evaluate, evaluate_leaks
from grain_jax.data.records import Record
from grain_jax.data.tfds_records import encode_record, shard_path, write_metadata, write_shard


def smooth_image(seed: int) -> Image.Image:
    """A smooth image, as photographs are, which survives recompression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def test_images(tmp_path):
    root = tmp_path / "test"
    for name, seed in (("owl/a", 0), ("owl/b", 1), ("newt/c", 2), ("newt/d", 3)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").write_bytes(encoded(smooth_image(seed)))
    return root


@pytest.fixture
def train_images(tmp_path):
    """Others, and of two evaluation images a smaller one and one of lower quality."""
    root = tmp_path / "train"
    root.mkdir()
    for seed in range(10, 16):
        (root / f"{seed}.png").write_bytes(encoded(smooth_image(seed)))
    (root / "small.png").write_bytes(encoded(smooth_image(0).resize((48, 40))))
    (root / "poor.jpg").write_bytes(encoded(smooth_image(2), "JPEG"))
    return root


def check(train, test, *options) -> int:
    return evaluate.main(["leaks", f"--train={train}", f"--test={test}", *map(str, options)])


def test_copies_are_found_and_metrics_told_without_them(
    train_images, test_images, tmp_path, capsys
):
    lines = [
        {"task": "zero_shot", "set": "test", "method": "name", "image": name, "correct": right}
        for name, right in (
            ("owl/a.png", 1.0),
            ("owl/b.png", 0.0),
            ("newt/c.png", 1.0),
            ("newt/d.png", 1.0),
        )
    ]
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "pairs.csv"
    options = (f"--predictions={predictions}", f"--output={out}")
    assert check(train_images, test_images, *options) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 evaluation images have a training image (of 8)" in printed
    (row,) = [line.split() for line in printed.splitlines() if "name" in line and "2 of 4" in line]
    assert [cell for cell in row if "." in cell][:3] == ["75.0", "100.0", "50.0"]
    pairs = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [(row["test"], row["train"]) for row in pairs] == [
        ("newt/c.png", "poor.jpg"),
        ("owl/a.png", "small.png"),
    ]
    assert all(int(row["bits"]) <= 4 and row["cosine"] == "" for row in pairs)
    assert check(train_images, test_images, f"--output={out}") == 2
    assert "exists; give another file, or --overwrite" in capsys.readouterr().err
    assert check(train_images, test_images, f"--output={out}", "--overwrite") == 0


def test_records_are_training_images_too(test_images, tmp_path, capsys):
    root = tmp_path / "records"
    root.mkdir()
    stored = [Record(id=f"r{seed}", image=encoded(smooth_image(seed))) for seed in (30, 3)]
    path = shard_path(root, "train", 0, 1)
    write_metadata(root, {"train": write_shard(path, [encode_record(r) for r in stored])})
    out = tmp_path / "pairs.csv"
    assert check(root, test_images, f"--output={out}", "--max_distance=0") == 0
    assert out.read_text() == "test,train,bits,cosine\nnewt/d.png,r3,0,\n"
    assert check(root, test_images, "--train_split=dev") == 2
    assert "has no split 'dev'; it has ['train']. Choose one with --train_split." in (
        " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize("layout", ["folder", "tar", "parquet"])
def test_training_data_with_captions_needs_no_labels(test_images, tmp_path, layout):
    images = {f"{seed:03d}": encoded(smooth_image(seed)) for seed in (30, 3)}
    place = tmp_path / "train"
    place.mkdir()
    if layout == "parquet":
        cells = [{"bytes": image, "path": None} for image in images.values()]
        table = pyarrow.table({"image": cells, "caption": ["one", "two"]})
        place = place / "0000.parquet"
        pyarrow.parquet.write_table(table, place)
        name = "0000.parquet:1"
    else:
        members = {"lost.txt": b"without an image"}
        for key, image in images.items():
            members |= {f"{key}.png": image, f"{key}.txt": b"a caption"}
        write_tar(place / "00000.tar", members)
        place = place / "00000.tar" if layout == "tar" else place
        name = "00000.tar/003.png"
    out = tmp_path / "pairs.csv"
    assert check(place, test_images, f"--output={out}", "--max_distance=0") == 0
    assert out.read_text() == f"test,train,bits,cosine\nnewt/d.png,{name},0,\n"


def test_training_images_are_of_the_split_train(test_images, tmp_path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    for split, seeds in (("train", (30, 3, 31)), ("test", (2,))):
        table = pyarrow.table({"image": [encoded(smooth_image(seed)) for seed in seeds]})
        pyarrow.parquet.write_table(table, root / f"{split}-00000-of-00001.parquet")
    assert check(root, test_images, "--max_distance=0") == 0
    assert "1 of 4 evaluation images have a training image (of 3)" in capsys.readouterr().out
    assert check(root, root, "--train_split=train", "--max_distance=0") == 0
    assert "0 of 1 evaluation images" in capsys.readouterr().out
    assert check(root, test_images, "--train_split=dev") == 2
    assert "has no split 'dev'; it has test, train (--train_split)" in capsys.readouterr().err


def test_tables_and_tars_without_images_are_refused(test_images, tmp_path, capsys):
    for kind in ("tables", "tars"):
        (tmp_path / kind).mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"caption": ["a"]}), tmp_path / "tables/a.parquet")
    write_tar(tmp_path / "tars/0.tar", {"a.txt": b"a caption"})
    for kind, message in (("tables", "0 columns with the bytes"), ("tars", "hold no image")):
        assert check(tmp_path / kind, test_images) == 2
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_distance=8"], "is not from 0 to 7"),
        (["--output=pairs.txt"], "end it in .csv"),
        (["--step=3"], "go with --checkpoint"),
        (["--cache=none"], "--cache keeps embeddings of --checkpoint"),
        (["--predictions=none.jsonl"], "There is no file 'none.jsonl'"),
        (["--test_split=dev"], "leave --test_split out"),
        (["--score_threshold=2"], "from 0 to 1"),
    ],
)
def test_mistakes_are_named(train_images, test_images, options, message, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_leaks, "hashes_of", None)
    assert check(train_images, test_images, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_unreadable_images_and_the_same_folder_are_refused(train_images, test_images, capsys):
    assert check(test_images, test_images) == 2
    assert "are the same images" in capsys.readouterr().err
    assert check(train_images / "nowhere", test_images) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert check(train_images.parent / "trian", test_images) == 2
    assert f"did you mean '{train_images}'?" in capsys.readouterr().err
    (train_images / "10.png").write_bytes(b"<html>not found</html>")
    assert check(train_images, test_images) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Training images: " in said
    assert "10.png" in said


def test_embeddings_are_read_the_second_time(
    train_images, test_images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate_leaks, "read_model", lambda path, **_: toy_model().loaded)
    given = ("--checkpoint=run", f"--cache={tmp_path / 'kept'}", f"--output={tmp_path / 'a.csv'}")
    assert check(train_images, test_images, *given) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(", 12 and 0 encoded.")
    first = (tmp_path / "a.csv").read_text()
    assert check(train_images, test_images, *given, "--overwrite") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "Embeddings: 12 images and 0 texts read" in said
    assert (tmp_path / "a.csv").read_text() == first
