"""`evaluate --support` and `--bank`: labelled images, and captions of other images."""

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from labelled_looks import LOOKS, measured, png, write_images
from plain_text import plain

from grain_jax import evaluate
from grain_jax.config import DataConfig
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.evaluation.caption_bank import load_bank
from grain_jax.evaluation.support import load_support


def test_labelled_images_say_what_the_names_do_not(run, images, support, capsys):
    given = [f"--data={images}", f"--support={support}", "--methods=name,gda,tip_x,knn,examples"]
    status, report, results = measured(run, *given)
    assert status == 0
    assert results["colours/name"] == 0.0
    assert results["colours/gda"] == results["colours/tip_x"] == 1.0
    assert {"colours/knn", "colours/examples"} <= results.keys()
    printed = plain(capsys.readouterr().out)
    assert "tip_x (labelled images)" in printed
    found = report["support"]
    assert (found["images"], found["classes"], found["shots"]) == (18, 3, None)
    assert found["folder"] == str(support)
    _, other, _ = measured(run, *given, "--shots=4")
    _, again, _ = measured(run, *given, "--shots=4")
    _, reseeded, _ = measured(run, *given, "--shots=4", "--support_seed=1")
    assert other["support"] == again["support"]
    assert (other["support"]["images"], other["support"]["seed"]) == (12, 0)
    one_input = {one["inputs_sha256"] for one in (report, other, again, reseeded)}
    drawn = {one["support"]["sha256"] for one in (report, other, again, reseeded)}
    assert len(one_input) == len(drawn) == 3
    _, plain_report, _ = measured(run, f"--data={images}", "--methods=name")
    assert "support" not in plain_report


def test_images_are_encoded_for_methods_that_look_at_them(
    run, images, support, bank, tmp_path, capsys
):
    def encoded(methods: str, *options: str) -> int:
        cache = tmp_path / methods
        given = [f"--data={images}", f"--methods={methods}", f"--cache={cache}", *options]
        assert measured(run, *given)[0] == 0
        printed = plain(capsys.readouterr().out)
        assert len(list(cache.rglob("images-*"))) == 1  # regions are of tested images alone
        return int(printed.partition("encoded.")[0].rpartition(" and ")[0].split()[-1])

    assert encoded("name") == 9
    assert encoded("name,x_more,cased", f"--bank={bank}") == 9
    assert encoded("name,without_generic", f"--bank={bank}") == 9 + 12
    assert encoded("zpe,x_more", f"--bank={bank}") == 9 + 12
    assert encoded("name,knn", f"--support={support}") == 9 + 18


def test_images_are_drawn_by_seed_and_class_alone(images, support):
    def drawn(folder: Path, seed: int) -> dict[str, list[str]]:
        found = load_support(folder, load_zero_shot(images), shots=2, seed=seed)
        ids = [found.source[i].id for i in range(len(found.labels))]
        return {
            name: [one for one, label in zip(ids, found.labels, strict=True) if label == k]
            for k, name in enumerate(load_zero_shot(images).class_names)
        }

    first = drawn(support, 0)
    assert all(
        len(ids) == 2 and {one.split("/")[0] for one in ids} == {name}
        for name, ids in first.items()
    )
    assert drawn(support, 0) == first
    assert any(drawn(support, seed) != first for seed in (1, 2))
    shutil.rmtree(support / "blue")
    assert drawn(support, 0) == first | {"blue": []}


def test_labels_are_bound_by_the_class_names_of_the_set(run, images, support, tmp_path, capsys):
    """Labels that are codes, named by a file beside the tested images, in any order."""
    names = {"red": "n3", "green": "n1", "blue": "n2"}
    for root in (images, support):
        for name, code in names.items():
            (root / name).rename(root / code)
    (images / "classes.json").write_text(json.dumps({code: name for name, code in names.items()}))
    given = [f"--data={images}", f"--support={support}", "--methods=gda"]
    assert measured(run, *given)[2]["colours/gda"] == 1.0
    for name, code in names.items():  # names are understood too, in other spelling
        (support / code).rename(support / name.upper())
    assert measured(run, *given)[2]["colours/gda"] == 1.0
    # Other classes are left out, and said.
    shutil.copytree(support / "RED", support / "purple")
    capsys.readouterr()
    _, report, results = measured(run, *given)
    assert results["colours/gda"] == 1.0
    assert report["support"]["images"] == 18
    assert "1 of its 4 classes are none of 'colours' ('purple' first)" in plain(
        capsys.readouterr().err
    )


def test_classes_without_labelled_images_leave_only_what_can_do_without(
    run, images, support, capsys
):
    shutil.rmtree(support / "blue")
    given = [f"--data={images}", f"--support={support}"]
    status, report, results = measured(run, *given, "--methods=gda,icis")
    assert status == 0
    printed = plain(capsys.readouterr().err)
    assert "support: 1 of 3 classes have no labelled images ('blue' first)" in printed
    assert "left out: gda needs two labelled images or more of a class" in printed
    assert "colours/icis" in results
    assert "colours/gda" not in results
    assert report["support"]["classes"] == 2
    output = f"--output={run / 'other.json'}"
    assert evaluate.main([f"--checkpoint={run}", *given, "--methods=gda,knn", output]) == 2
    assert "No method of those that are named" in plain(capsys.readouterr().err)


def test_captions_of_labelled_images_are_read_beside_them(run, images, support, capsys):
    given = [f"--data={images}", f"--support={support}", "--methods=tip_x,caps_adapter"]
    captions = {
        f"{label}/{i}.png": f"a {colour} thing" for label, colour in LOOKS.items() for i in range(6)
    }
    (support / "captions.json").write_text(json.dumps(captions))
    _, report, results = measured(run, *given)
    assert results["colours/caps_adapter"] == 1.0
    assert report["support"]["captions_sha256"]
    assert "caps_adapter (labelled images, their captions)" in plain(capsys.readouterr().out)
    del captions["red/2.png"]
    (support / "captions.json").write_text(json.dumps(captions))
    _, report, results = measured(run, *given)
    assert "colours/caps_adapter" not in results
    assert report["support"]["captions_sha256"] is None
    printed = plain(capsys.readouterr().err)
    assert "1 of 18 labelled images have no caption in 'captions.json' ('red/2.png' first)" in (
        printed
    )
    assert "left out: caps_adapter needs a caption of every labelled image" in printed
    (support / "captions.json").write_text("[]")
    output = f"--output={run / 'other.json'}"
    assert evaluate.main([f"--checkpoint={run}", *given, output]) == 2
    assert "must hold an object {image: caption}" in plain(capsys.readouterr().err)


def test_captions_of_other_images_come_from_prepared_records(run, images, bank, capsys):
    given = [f"--data={images}", f"--bank={bank}", "--methods=x_more,cased"]
    status, report, results = measured(run, *given)
    assert status == 0
    assert {"colours/x_more", "colours/cased"} <= results.keys()
    found = report["bank"]
    assert (found["split"], found["size"], found["captions"]) == ("train", 20_000, 12)
    captured = capsys.readouterr()
    assert "bank: 3 of 15 images have no caption and are left out" in plain(captured.err)
    assert "x_more (captions of other images)" in plain(captured.out)
    _, fewer, _ = measured(run, *given, "--bank_size=3")
    assert fewer["bank"]["captions"] == 2  # of the middle and the last image; the first has none
    assert fewer["inputs_sha256"] != report["inputs_sha256"]


def test_a_bank_has_one_caption_of_each_image_an_original_one_first(bank):
    found = load_bank(bank, DataConfig(), split="train", size=3, image_size=4)
    assert found.captions == ("a green thing", "a blue thing")
    assert [found.source[i].id for i in range(2)] == ["image7", "image14"]
    whole = load_bank(bank, DataConfig(), split="train", size=100, image_size=4)
    assert whole.captions[:3] == ("a green thing", "a blue thing", "a red thing")
    assert len(whole.captions) == len(whole.source) == 12
    assert whole.hashed is whole.hashed  # read once for all sets
    assert whole.hashed.ids[:2] == ("image1", "image2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--support={support}"], "looked at by none of the methods name, description"),
        (["--bank={bank}", "--methods=gda"], "looked at by none of the methods gda"),
        (["--shots=2"], "--shots goes with --support"),
        (["--support={support}", "--methods=gda", "--support_seed=1"], "goes with --shots"),
        (
            ["--support={support}", "--methods=gda", "--shots=1", "--support_seed=-1"],
            "--support_seed=-1 should be 0 or more",
        ),
        (["--support={support}", "--methods=gda", "--shots=0"], "whole number of at least 1"),
        (["--bank_split=train"], "--bank_split goes with --bank"),
        (["--support={images}", "--methods=gda"], "is the folder of --data"),
        (["--support={images}/nowhere", "--methods=gda"], "There is no folder"),
        (["--support={images}s", "--methods=gda"], "did you mean '/"),
        (["--support_split=train"], "--support_split goes with --support"),
        (
            ["--support={support}", "--methods=gda", "--shots=1"],
            "No method of those that are named",
        ),
        (["--bank={bank}", "--methods=cased", "--bank_split=bare"], "has a caption. Give prepared"),
        (["--bank={bank}", "--methods=cased", "--bank_split=other"], "other"),
        (["--bank={images}", "--methods=cased"], "dataset_info.json"),
        (
            ["--methods=gda"],
            "gda needs two labelled images or more of a class (--support, --shots)",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message, run, images, support, bank, capsys):
    given = [text.format(support=support, bank=bank, images=images) for text in options]
    assert evaluate.main([f"--checkpoint={run}", f"--data={images}", *given]) == 2
    assert message in plain(capsys.readouterr().err)
    assert not list(run.glob("*.json"))


def test_support_goes_with_labelled_images_only(run, support, bank, capsys):
    given = [f"--checkpoint={run}", f"--support={support}"]
    for data in ([], [f"--data={bank}"]):
        assert evaluate.main([*given, *data]) == 2
        assert "--support goes with labelled images" in plain(capsys.readouterr().err)


def test_tested_images_are_not_among_the_labelled_ones(run, images, support, capsys):
    shutil.copy(images / "red" / "1.png", support / "green" / "5.png")
    given = [f"--checkpoint={run}", f"--data={images}", f"--support={support}", "--methods=gda"]
    assert evaluate.main(given) == 2
    printed = plain(capsys.readouterr().err)
    assert "1 of 9 images of --data are among the labelled images of --support" in printed
    assert "('red/1.png', there 'green/5.png', first)" in printed


def test_labelled_images_of_other_classes_are_refused(run, images, tmp_path, capsys):
    other = write_images(tmp_path / "other", 2, start=5, looks={"owl": "red", "wren": "blue"})
    given = [f"--checkpoint={run}", f"--data={images}", f"--support={other}", "--methods=gda"]
    assert evaluate.main(given) == 2
    printed = plain(capsys.readouterr().err)
    assert "--support has images of classes like 'owl', and none of the 3 classes" in printed


def test_captions_of_tested_images_are_refused(run, images, bank, capsys):
    found = load_bank(bank, DataConfig(), split="train", size=100, image_size=4)
    (images / "green" / "copy.png").write_bytes(found.source[0].image)
    given = [f"--checkpoint={run}", f"--data={images}", f"--bank={bank}"]
    assert evaluate.main([*given, "--methods=cased"]) == 2
    said = plain(capsys.readouterr().err)
    assert "1 of 10 images of --data are among the captioned images of --bank" in said


def test_labelled_images_are_of_the_split_train(run, tmp_path, capsys):
    """Of one folder of tables: what is tested is of another split than what is looked at."""
    root = tmp_path / "tables"
    root.mkdir()
    for split, seed, count in (("test", 0, 2), ("train", 1000, 4), ("val", 2000, 1)):
        names = [name for name in LOOKS for _ in range(count)]
        shown = [png(LOOKS[name], seed + i) for i, name in enumerate(names)]
        table = pyarrow.table({"image": shown, "label": names})
        pyarrow.parquet.write_table(table, root / f"{split}-00000-of-00001.parquet")
    given = [f"--data={root}", f"--support={root}", "--methods=gda"]
    status, report, results = measured(run, *given)
    assert status == 0
    assert results["tables/gda"] == 1.0
    assert (report["support"]["images"], report["support"]["split"]) == (12, "train")
    assert "labelled images are those of split 'train'" in plain(capsys.readouterr().err)
    knn = [*given[:2], "--methods=knn", "--support_split=val"]
    assert measured(run, *knn)[1]["support"]["images"] == 3
    capsys.readouterr()
    for split, message in (("test", "are among the labelled"), ("dev", "(--support_split)")):
        failing = [f"--checkpoint={run}", *given, f"--support_split={split}", "--cache=none"]
        assert evaluate.main([*failing, f"--output={tmp_path / 'b.json'}"]) == 2
        assert message in plain(capsys.readouterr().err)
