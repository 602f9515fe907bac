"""Class folders: labels, captions, what is held out, and descriptions of classes."""

import json
from pathlib import Path

import pytest
from tiny_collections import image_bytes

from grain_jax import prepare
from grain_jax.data.importers.columns import check_template
from grain_jax.data.importers.held_out import is_held_out
from grain_jax.data.importers.imagefolder import ImageFolder
from grain_jax.data.tfds_records import RecordSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in ("house_wren", "jay"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "in" / label / f"{index}.png").write_bytes(image_bytes(index % 3))
    return tmp_path / "in"


def run(root: Path, *more: str) -> int:
    out = root.parent / "out"
    words = ["--from=imagefolder", f"--input={root}", f"--output={out}", "--workers=1"]
    return prepare.main([*words, *more])


def split_ids(root: Path, split: str) -> set[str]:
    source = RecordSource(root.parent / "out", split)
    return {source[i].id for i in range(len(source))}


def test_a_holdout_of_no_image_builds_nothing(root: Path, capsys) -> None:
    assert run(root, "--holdout=0.001") == 2
    assert "none is set aside" in capsys.readouterr().err
    assert not (root.parent / "out").exists()


def test_holdout_makes_two_disjoint_splits(root: Path) -> None:
    assert run(root, "--holdout=0.3") == 0
    train, held_out = split_ids(root, "train"), split_ids(root, "validation")
    assert not train & held_out
    assert len(train | held_out) == 40
    assert 4 <= len(held_out) <= 20


def test_what_is_held_out_depends_on_the_path_alone(root: Path) -> None:
    before = {item.id for item in ImageFolder(root, holdout=0.3, held_out=True)}
    (root / "jay" / "new.png").write_bytes(image_bytes(0))
    after = {item.id for item in ImageFolder(root, holdout=0.3, held_out=True)}
    assert after - before <= {"jay/new.png"}
    assert before <= after
    more = {item.id for item in ImageFolder(root, holdout=0.6, held_out=True)}
    assert after < more
    # By hand: the first 8 bytes of the SHA-256 of the path, as a fraction of 2^64. Another choice
    # would train a new version on images that were held out before.
    fractions = {"wren/x y.png": 0.261, "a.png": 0.496, "photos/0001.jpeg": 0.579, "b/ü.jpg": 0.833}
    for path, fraction in fractions.items():
        assert is_held_out(path, fraction + 0.001)
        assert not is_held_out(path, fraction - 0.001)
    share = sum(is_held_out(f"{i}.png", 0.1) for i in range(20_000)) / 20_000
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("value", ["0", "1", "-1", "nan", "x"])
def test_a_holdout_of_none_or_all_is_refused(root: Path, value: str, capsys) -> None:
    assert run(root, f"--holdout={value}") == 2
    assert "holdout" in capsys.readouterr().err


def test_the_second_split_cannot_be_the_first(root: Path, capsys) -> None:
    assert run(root, "--holdout=0.3", "--split=validation") == 2
    assert "--holdout makes a second split 'validation'" in capsys.readouterr().err


def test_an_empty_part_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"--holdout=1e-09 of 40 images: none is set aside"):
        ImageFolder(root, holdout=1e-9, held_out=True)


def test_descriptions_are_kept_under_the_names_of_labels(root: Path) -> None:
    (root / "wren").mkdir()  # a class without images and without descriptions
    texts = {"House Wren": ["a short tail"], "jay": ["a crest", "blue wings"], "owl": ["ears"]}
    path = root.parent / "d.json"
    path.write_text(json.dumps(texts))
    assert run(root, f"--descriptions={path}", "--holdout=0.3") == 0
    for split in ("train", "validation"):
        kept = json.loads((root.parent / "out" / f"class_descriptions-{split}.json").read_text())
        assert kept == {"house wren": ["a short tail"], "jay": ["a crest", "blue wings"]}
        labels = RecordSource(root.parent / "out", split)
        assert {labels[i].label for i in range(len(labels))} <= set(kept)
    notes = json.loads((root.parent / "out" / "report-train.json").read_text())["figures"]["notes"]
    assert not any("scored" in note for note in notes)
    assert any("1 of 3 entries of " in n for n in notes)
    assert any(n.endswith("have no description ('wren').") for n in notes)


def test_descriptions_of_other_classes_are_refused(root: Path, capsys) -> None:
    path = root.parent / "d.json"
    path.write_text('{"owl": ["ears"]}')
    assert run(root, f"--descriptions={path}") == 2
    assert "No key of" in capsys.readouterr().err


def test_names_of_folders_may_be_given(root: Path) -> None:
    path = root.parent / "c.json"
    path.write_text('{"house_wren": "wren", "jay": "blue_jay"}')
    importer = ImageFolder(root, classes=path, template="{}, seen from afar")
    assert {item.label for item in importer} == {"wren", "blue jay"}
    assert importer[0].captions[0].text == "wren, seen from afar"
    path.write_text('{"house_wren": "bird", "jay": "bird"}')
    with pytest.raises(ValueError, match="'house_wren' and 'jay' are both called 'bird'"):
        ImageFolder(root, classes=path)


@pytest.mark.parametrize("template", ["", "a photo", "{} {}", "{} {0}", "{{}}", "{name}"])
def test_a_template_without_one_place_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"--template=.* needs exactly one '\{\}'"):
        check_template(template)


def test_a_folder_of_splits_or_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no images in class folders"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        ImageFolder(tmp_path / "none")
    for split in ("train", "val"):
        (tmp_path / split / "jay").mkdir(parents=True)
        (tmp_path / split / "jay" / "1.png").write_bytes(image_bytes(1))
    with pytest.raises(ValueError, match="look like splits of a data set"):
        ImageFolder(tmp_path)
