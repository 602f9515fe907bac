"""python -m grain_jax.calibrate, and predictions with what it writes."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from labelled_tars import write_webdataset
from PIL import Image
from tiny_tfds import build
from toy_encoder import ToyModel, make_image, toy_model

from grain_jax import calibrate, evaluate, predict
from grain_jax.command_line import ExitStatus
from grain_jax.evaluation.calibration import split_by_name
from grain_jax.inference.predictor import Model
from grain_jax.loading.calibration import find_calibration

COLOURS = ("red", "green", "blue")
NUM_IMAGES, WRONG = 160, 5  # every so many is of another class than its colour says
SCALE = 10.0  # of the toy
DESCRIBED = {"red": ["red"], "green": ["green"], "blue": ["blue", "red"]}


def draw(folder: Path, name: str, whole: str, *parts: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_image(whole, *parts)).save(path)


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
    """160 labelled images, a fifth of which the model takes for another class."""
    folder = tmp_path_factory.mktemp("images")
    rows = [("file", "label")]
    for i in range(NUM_IMAGES):
        label = COLOURS[i % 3]
        seen = COLOURS[(i + 1) % 3] if i % WRONG == 0 else label
        draw(folder, f"{i}.png", seen, seen, "red")
        rows.append((f"{i}.png", label))
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    return folder


@pytest.fixture
def files(image_set, tmp_path, monkeypatch):
    """A folder with the set, texts and a place for a run; the toy model is that of any run."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("set").symlink_to(image_set)
    (tmp_path / "descriptions.json").write_text(json.dumps(DESCRIBED))
    monkeypatch.setattr(calibrate, "read_model", lambda path, **_: toy_model().loaded)

    def load(path, *, batch_size, note, calibration, **_):
        loaded = toy_model().loaded
        fitted = find_calibration(path, loaded, calibration, note=note)
        return Model(loaded, batch_size=batch_size, note=note, calibration=fitted)

    monkeypatch.setattr(predict, "load", load)
    return tmp_path


def call(*arguments: str, checkpoint: str = "run") -> int:
    return calibrate.main([f"--checkpoint={checkpoint}", "--data=set", *arguments])


def content(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def accuracy(*, fitted: bool) -> tuple[float, int]:
    """Of the toy by name, on the images that are fitted to or on the others, and their number."""
    mask = split_by_name([f"{i}.png" for i in range(NUM_IMAGES)], 0.5)
    right = np.arange(NUM_IMAGES) % WRONG != 0
    chosen = right[mask if fitted else ~mask]
    return float(chosen.mean()), len(chosen)


def test_by_name_all_of_it_is_what_the_accuracy_says(files, capsys):
    assert call() == ExitStatus.DONE
    printed = capsys.readouterr()
    found = content("run/calibration.json")
    rate, count = accuracy(fitted=True)
    # Logits are scale / T for the colour and 0 for the others.
    temperature = SCALE / math.log(2 * rate / (1 - rate))
    assert found["temperature"] == pytest.approx(temperature, rel=1e-3)
    report = found["report"]
    assert report["images"] == {"fitted": count, "held_out": NUM_IMAGES - count}
    held, _ = accuracy(fitted=False)
    for when, confidence in (
        ("before", math.exp(SCALE) / (math.exp(SCALE) + 2)),
        ("after", rate),
    ):
        assert report[when]["accuracy"]["value"] == pytest.approx(held)
        assert report[when]["mean_confidence"]["value"] == pytest.approx(confidence, rel=1e-3)
        assert report[when]["ece"]["value"] == pytest.approx(abs(held - confidence), abs=1e-3)
    assert found["fitted_for"]["method"] == "name"
    assert found["fitted_for"]["classes"] == sorted(COLOURS)
    assert len(found["fitted_for"]["weights_sha256"]) == 64
    assert "carries over" not in printed.err
    assert f"{report['after']['ece']['value']:.1%}" in printed.out
    with Image.open("run/calibration.png") as plot:
        assert plot.width > plot.height


def encoded(i: int) -> bytes:
    seen = COLOURS[(i + 1) % 3] if i % WRONG == 0 else COLOURS[i % 3]
    file = io.BytesIO()
    Image.fromarray(make_image(seen, seen, "red")).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("layout", ["tars", "parquet", "tfds"])
def test_images_in_tars_tables_and_tfds_are_fitted_to_as_files_are(files, capsys, layout):
    images = [encoded(i) for i in range(NUM_IMAGES)]
    options = []
    if layout == "tars":
        members = {
            f"{i}.{suffix}": value
            for i, image in enumerate(images)
            for suffix, value in (("png", image), ("cls", str(i % 3).encode()))
        }
        write_webdataset(files / "stored", [members], list(COLOURS))
        place, names = "stored", [f"test/0.tar/{i}.png" for i in range(NUM_IMAGES)]
        options = ["--split=test"]
    elif layout == "parquet":
        labels = [COLOURS[i % 3] for i in range(NUM_IMAGES)]
        table = pyarrow.table({"image": images, "other": images, "label": labels})
        pyarrow.parquet.write_table(table, files / "set.parquet")
        place, names = "set.parquet", [f"set.parquet:{i}" for i in range(NUM_IMAGES)]
        options = ["--image_column=image", "--label_column=label"]
    else:
        label = tfds.features.ClassLabel(names=COLOURS)
        features = {"image": tfds.features.Image(encoding_format="png"), "label": label}
        rows = [{"image": io.BytesIO(x), "label": i % 3} for i, x in enumerate(images)]
        folder = build(files / "prepared", features, {"val": rows})
        place, names = f"tfds:{folder}", [f"val/{i}" for i in range(NUM_IMAGES)]
        options = ["--split=val"]
    arguments = [*options, "--output=fitted.json"]
    assert calibrate.main(["--checkpoint=run", f"--data={place}", *arguments]) == ExitStatus.DONE
    report = content("fitted.json")["report"]
    count = int(split_by_name(names, 0.5).sum())
    assert report["images"] == {"fitted": count, "held_out": NUM_IMAGES - count}
    right = (np.arange(NUM_IMAGES) % WRONG != 0)[~split_by_name(names, 0.5)]
    if layout != "tfds":  # which shuffles what it writes
        assert report["before"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert report["split"] == (None if layout == "parquet" else options[0].partition("=")[2])
    assert report["data"] == (place if layout == "tfds" else str(files / place))
    again = ["--overwrite", "--output=fitted.json", *options, "--split=none"]
    assert calibrate.main(["--checkpoint=run", f"--data={place}", *again]) == ExitStatus.MISTAKE
    assert "split" in capsys.readouterr().err


def test_predictions_use_what_was_fitted(files, capsys):
    assert call("--descriptions=descriptions.json", "--alpha=0.5") == ExitStatus.DONE
    question = ["set/1.png", "--checkpoint=run", "--descriptions=descriptions.json"]
    assert predict.main([*question, "--json=new.json", "--csv=new.csv"]) == ExitStatus.DONE
    printed = capsys.readouterr().out
    assert predict.main([*question, "--calibration=none", "--json=old.json"]) == ExitStatus.DONE
    new, old = content("new.json"), content("old.json")
    assert "calibration" in new
    assert "calibration" not in old
    assert new["calibration"]["temperature"] == content("run/calibration.json")["temperature"]
    (after,), (before,) = new["images"], old["images"]
    assert set(after) - set(before) == {"calibrated"}
    assert set(after["labels"][0]) - set(before["labels"][0]) == {"num_seen"}
    assert [one["label"] for one in after["labels"]] == [one["label"] for one in before["labels"]]
    assert after["labels"][0]["probability"] != before["labels"][0]["probability"]
    assert isinstance(after["calibrated"]["none_of_these"], bool)
    assert "in 90% set" in printed
    with Path("new.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["in_set"] for row in rows} <= {"0", "1"}
    assert rows[0]["in_set"] == "1"
    assert rows[0]["none_of_these"] == "0"


def test_nothing_is_replaced_unless_that_is_said(files, capsys):
    assert call() == ExitStatus.DONE
    before = Path("run/calibration.json").read_text()
    assert call("--coverage=0.8") == ExitStatus.MISTAKE
    assert "--overwrite" in capsys.readouterr().err
    assert Path("run/calibration.json").read_text() == before
    assert call("--coverage=0.8", "--overwrite") == ExitStatus.DONE
    assert content("run/calibration.json")["label_sets"]["coverage"] == 0.8


def test_images_of_none_of_the_classes(files, capsys):
    for i in range(60):  # of no colour, so that no class is nearer than another
        draw(files / "outliers", f"{i}.png", "red")
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(files / f"outliers/{i}.png")
    assert call("--outliers=outliers", "--false_accept=0.1") == ExitStatus.DONE
    none = content("run/calibration.json")["report"]["none_of_these"]
    assert none["auroc"] == 1.0
    assert (none["fpr95"], none["fpr95_image_alone"]) == (0.0, 0.0)
    assert none["false_accept"]["value"] == 0.0
    assert none["false_reject"]["value"] == 0.0
    black = ["outliers/0.png", "--checkpoint=run", "--labels=red,green,blue", "--json=black.json"]
    assert predict.main(black) == ExitStatus.DONE
    assert content("black.json")["images"][0]["calibrated"]["none_of_these"] is True
    assert "none of these" in capsys.readouterr().out


def test_without_labels_the_frequencies_of_classes_are_matched(files, capsys):
    assert call("--unlabelled", "--labels=red,green,blue") == ExitStatus.DONE
    found = content("run/calibration.json")
    assert found["temperature"] == 1.0
    assert found["label_sets"] is None
    assert sum(found["class_shift"].values()) == pytest.approx(0, abs=1e-6)
    assert found["report"]["after"]["prior_departure"] < 1
    assert "no temperature" in " ".join(found["report"]["notes"])
    assert call("--unlabelled", "--overwrite", "--descriptions=descriptions.json") == 0
    assert set(content("run/calibration.json")["class_shift"]) == set(DESCRIBED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlabelled"], "give --labels or --descriptions"),
        (["--labels=a,b"], "--labels goes with --unlabelled"),
        (["--unlabelled", "--labels=a,b", "--keep_names"], "--keep_names goes with labelled"),
        (["--unlabelled", "--labels=a,b", "--split=test"], "without splits; leave --split out"),
        (["--outliers_split=test"], "--outliers_split goes with --outliers"),
        (["--outliers=set", "--outliers_split=test"], "leave --outliers_split out"),
        (["--outliers=sett"], "There is no folder 'sett'; did you mean 'set'?"),
        (["--split=test"], "without splits; leave --split out"),
        (["--unlabelled", "--labels=red"], "1 class"),
        (["--false_accept=0.1"], "--outliers"),
        (["--method=name", "--alpha=0.5"], "leave it out"),
        (["--method=description"], "needs descriptions"),
        (["--alpha=0.5"], "no descriptions"),
        (["--output=out.txt"], "end in .json"),
        (["--false_reject=0"], "between 0 and 1"),
        (["--fit_fraction=0.0001"], "both take some"),
        (["--fit_fraction=0.0001"], "Of the 160 images of --data 0 are to fit to"),
        (["--false_reject=0.001"], "--false_reject=0.001 takes at least 999 images of --data"),
        (
            ["--outliers=set", "--false_accept=0.001"],
            "--false_accept=0.001 takes at least 999 images of --outliers",
        ),
    ],
)
def test_a_mistake_is_named(files, capsys, options, message, monkeypatch):
    monkeypatch.setattr(ToyModel, "encode_images", None)  # before an image is encoded
    assert call(*options) == ExitStatus.MISTAKE
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("run/calibration.json").exists()


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (calibrate.inner_fraction, "1", "neither"),
        (calibrate.inner_fraction, "nan", "from 0 to 1"),
        (calibrate.positive, "0", "above 0"),
        (calibrate.positive, "inf", "above 0"),
        (calibrate.weight, "-1", "at least 0"),
        (calibrate.weight, "many", "at least 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused(read, text, message):
    with pytest.raises(ValueError, match=message):
        read(text)
    assert read("0.5") == 0.5


def test_sets_without_images_or_with_one_class_are_refused(files, capsys):
    Path("empty").mkdir()
    assert calibrate.main(["--checkpoint=run", "--data=empty"]) == ExitStatus.MISTAKE
    assert "no labelled images" in capsys.readouterr().err
    unlabelled = ["--unlabelled", "--labels=a,b"]
    assert calibrate.main(["--checkpoint=run", "--data=empty", *unlabelled]) == ExitStatus.MISTAKE
    assert "holds no images" in capsys.readouterr().err
    draw(files / "one", "red/0.png", "red")
    assert calibrate.main(["--checkpoint=run", "--data=one"]) == ExitStatus.MISTAKE
    assert "one class" in capsys.readouterr().err


def test_a_model_on_the_hub_takes_a_place_to_write_to(files, capsys):
    assert call(checkpoint="someone/model") == ExitStatus.MISTAKE
    assert "give --output" in capsys.readouterr().err
    assert call("--output=hub.json", checkpoint="someone/model") == ExitStatus.DONE


def test_a_file_of_another_checkpoint_is_refused_or_left_aside(files, capsys):
    assert call() == ExitStatus.DONE
    changed = content("run/calibration.json")
    changed["fitted_for"] |= {"weights_sha256": "0" * 64, "step": 3}
    Path("run/calibration.json").write_text(json.dumps(changed))
    question = ["set/1.png", "--checkpoint=run", "--labels=red,green,blue"]
    assert predict.main([*question, "--json=a.json"]) == ExitStatus.DONE
    assert "is not used: the calibration was fitted to other weights" in capsys.readouterr().err
    assert "calibration" not in content("a.json")
    assert predict.main([*question, "--calibration=run/calibration.json"]) == ExitStatus.MISTAKE
    assert "of step 3" in capsys.readouterr().err
    assert predict.main([*question, "--calibration=gone.json"]) == ExitStatus.MISTAKE
    assert "no calibration" in capsys.readouterr().err
    Path("bad.json").write_text('{"grain_jax_calibration": 1}')
    assert predict.main([*question, "--calibration=bad.json"]) == ExitStatus.MISTAKE
    assert "bad.json is not a calibration" in capsys.readouterr().err


def test_scores_that_say_nothing_of_the_labels_are_refused(files, tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    rows = [("file", "label")]
    for i in range(60):
        draw(wrong, f"{i}.png", COLOURS[(i + 1) % 3], "red", "red")
        rows.append((f"{i}.png", COLOURS[i % 3]))
    with (wrong / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    assert calibrate.main(["--checkpoint=run", "--data=wrong"]) == ExitStatus.MISTAKE
    said = " ".join(capsys.readouterr().err.split())
    assert "The scores say nothing about the labels" in said
    assert list(Path("run").iterdir()) == []


def test_what_evaluate_encoded_is_read(files, monkeypatch, capsys):
    """The cache is one for all commands: of images with regions, and texts one by one."""
    monkeypatch.setattr(evaluate, "read_model", lambda path, **_: toy_model().loaded)
    given = ["--checkpoint=run", "--data=set", "--cache=kept"]
    assert evaluate.main([*given, "--methods=name", "--output=a.json"]) == ExitStatus.DONE
    capsys.readouterr()
    assert calibrate.main([*given, "--method=name"]) == ExitStatus.DONE
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"Embeddings: {NUM_IMAGES} images and 3 texts read from kept, 0 and 0 encoded."


def test_an_export_that_is_calibrated_later_is_to_be_exported_again(files, capsys):
    """Its pipeline reads config.json, and that has what was there at the export."""
    assert calibrate.main(["--checkpoint=run", "--data=set"]) == ExitStatus.DONE
    assert "export it again" not in capsys.readouterr().err
    Path("run/grain_jax.json").write_text("{}")
    assert calibrate.main(["--checkpoint=run", "--data=set", "--overwrite"]) == ExitStatus.DONE
    assert "--checkpoint=run --to=huggingface" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["tars", "parquet", "tfds"])
def test_outliers_are_what_data_takes(files, capsys, layout):
    """Their labels, if any, are not looked at."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    images, place = [file.getvalue()] * 60, "others"
    if layout == "tars":
        members = {f"{i}.png": image for i, image in enumerate(images)}
        write_webdataset(files / "others", [members], list(COLOURS))
    elif layout == "parquet":
        (files / "others").mkdir()
        for split, own in (("train", images[:2]), ("test", images)):
            table = pyarrow.table({"image": own, "caption": ["none"] * len(own)})
            pyarrow.parquet.write_table(table, files / f"others/{split}-00000-of-00001.parquet")
    else:
        label = tfds.features.ClassLabel(names=["dark", "light"])
        features = {"image": tfds.features.Image(encoding_format="png"), "label": label}
        rows = [{"image": io.BytesIO(image), "label": 0} for image in images]
        place = f"tfds:{build(files / 'prepared', features, {'test': rows, 'val': rows[:2]})}"
    given = (f"--outliers={place}", "--false_accept=0.1")
    assert call(*given) == ExitStatus.DONE
    report = content("run/calibration.json")["report"]
    assert report["none_of_these"]["auroc"] == 1.0
    assert report["outliers"] == (place if layout == "tfds" else str(files / place))
    assert call(*given, "--overwrite", "--outliers_split=dev") == ExitStatus.MISTAKE
    assert "(--outliers_split)" in " ".join(capsys.readouterr().err.split())
