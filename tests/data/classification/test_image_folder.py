import os
import shutil

import numpy as np
import pytest
from PIL import Image

from grain_jax.data.classification import image_folder
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.image_folder import IMAGE_SUFFIXES, read_folder
from grain_jax.data.image_files import MAX_IMAGE_BYTES


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), 128, np.uint8)).save(path, "PNG")


@pytest.fixture
def root(tmp_path):
    for name in ("set/cat/1.png", "set/dog/2.png", "real/owl/3.png", "real/owl/4.png"):
        save_image(tmp_path / name)
    return tmp_path / "set"


def load(root, **options):
    notes: list[str] = []
    return load_zero_shot(root, note=notes.append, **options), notes


def refused(root, message, **options):
    with pytest.raises(ValueError, match=message):
        load(root, **options)


def test_an_empty_class_folder_stays_a_class(root):
    (root / "fox").mkdir()
    dataset, notes = load(root)
    assert dataset.class_names == ("cat", "dog", "fox")
    assert dataset.source.labels == ("cat", "dog")
    assert notes == ["set: 1 of 3 classes have no images ('fox' first); they remain candidates."]


def test_links_are_followed_wherever_they_lead(root):
    (root / "owl").symlink_to("../real/owl")  # a class
    (root / "cat" / "far.png").symlink_to("../../real/owl/3.png")  # an image
    save_image(root.parent / "more" / "5.png")
    (root / "dog" / "more").symlink_to(root.parent / "more")  # a folder in a class
    dataset, notes = load(root)
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.source.files == (
        *("cat/1.png", "cat/far.png", "dog/2.png", "dog/more/5.png", "owl/3.png", "owl/4.png"),
    )
    assert [dataset.source[k].image[:4] for k in range(6)] == [b"\x89PNG"] * 6
    assert "as in 'dog/more'" in notes[0]


def test_links_in_a_circle_end(root):
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "up").symlink_to("..")
    (root / "cat" / "all").symlink_to(root)
    (root / "cat" / "twice").symlink_to("deep")
    (root / "dog" / "top").symlink_to("/")
    dataset, notes = load(root)
    assert dataset.source.files == ("cat/1.png", "dog/2.png")
    assert notes == [
        "set: 4 links to folders are ignored, as they lead to a folder that is read already or "
        "that contains them ('cat/all' first)."
    ]
    (root / "loop").symlink_to("loop")
    refused(root, "'.*/loop' cannot be reached")


def test_links_that_lead_nowhere_are_counted(root):
    (root / "cat" / "a.png").symlink_to("gone.png")
    (root / "cat" / "b.png").symlink_to("b.png")
    refused(root, "2 of the files of '.*/cat' cannot be reached, 'a.png' first")
    (root / "cat" / "a.png").unlink()
    (root / "cat" / "b.png").unlink()
    (root / "cat" / "annexed").symlink_to("gone")
    refused(root, "1 of the files of '.*/cat' cannot be reached, 'annexed' first")
    (root / "cat" / "annexed").unlink()
    (root / "owl").symlink_to("gone")
    refused(root, "'.*/owl' cannot be reached")


def test_images_in_two_classes_through_a_link_are_refused(root):
    (root / "kitty").symlink_to("cat")
    refused(root, "'.*/kitty' and '.*/cat' are the same folder")
    (root / "kitty").unlink()
    (root / "dog" / "friends").symlink_to("../cat")
    refused(root, "'.*/dog/friends' and '.*/cat' are the same folder")
    (root / "dog" / "friends").unlink()
    (root / "all").symlink_to(root)
    refused(root, "'.*/all' and '.*/set' are the same folder")


def test_ignored_files_are_counted(root):
    for name in ("cat/a.HEIC", "cat/b.avif", "dog/notes.txt", "dog/blob", "dog/c.jpg.part"):
        (root / name).write_bytes(b"")
    os.mkfifo(root / "dog/pipe.png")  # not to be waited for
    save_image(root / "sheet.png")
    (root / "README.md").write_text("of the set itself")
    dataset, notes = load(root)
    assert len(dataset.source) == 2
    assert notes == [
        "set: 1 images are not in a class folder and are ignored ('sheet.png' first).",
        "set: 2 images are ignored, as their format is not supported (1 .heic, 1 .avif; "
        "'cat/a.HEIC' first). Convert them to PNG.",
        "set: 4 files are ignored, as their names are not those of images (1 no suffix, 1 .part, "
        "1 .txt, 1 .png; 'dog/blob' first).",
    ]


def test_hidden_and_system_files_are_not_images_or_classes(root):
    for name in ("cat/._1.png", "cat/Thumbs.db", "cat/.DS_Store", "cat/desktop.ini", ".hidden.png"):
        (root / name).write_bytes(b"")
    for name in (".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", ".git"):
        save_image(root / name / "x.png")
        save_image(root / "dog" / name / "x.png")
    dataset, notes = load(root)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.source) == 2
    assert notes == []


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Jpeg", ".PNG", ".TIF"])
def test_suffixes_are_read_in_any_case(root, suffix):
    save_image(root / f"cat/x{suffix}")
    assert len(load(root)[0].source) == 3


def test_folders_without_images_are_refused(root):
    (root / "annotations").mkdir()
    (root / "annotations" / "1.xml").write_text("")
    refused(root, "'.*/annotations' holds files but no images .1 .xml; images end in .jpg")
    (root / "annotations" / "1.heic").write_bytes(
        b""
    )  # an image, of a format that is not supported
    assert load(root)[0].class_names == ("annotations", "cat", "dog")


def test_a_set_of_one_class_is_refused(root):
    (root.parent / "top").mkdir()
    shutil.move(root, root.parent / "top" / "images")
    top = root.parent / "top"
    refused(
        top,
        "images in only one subfolder, 'images': .* 100 %.* labels.csv .*"
        "The subfolders of '.*top/images' look like the classes .cat, dog.; give that folder",
    )
    (top / "classes.txt").write_text("cat\ndog\n")
    refused(top, "'images' has no class name .* look like the classes .cat, dog.; give that")
    refused(top / "images" / "cat", "holds no labelled images. Expected a folder with a labels.csv")
    (top / "images" / "labels.csv").write_text("file,label\ncat/1.png,x\n")
    refused(top / "images", "has only one class, 'x'")
    (top / "images" / "classes.json").write_text('{"x": "cat", "y": "dog"}')
    assert load(top / "images")[0].class_names == ("cat", "dog")


def test_a_table_with_another_name_is_named_in_the_error(root):
    for name in ("cat", "dog"):
        shutil.rmtree(root / name)
    (root / "Labels.CSV").write_text("file,label\n")
    refused(root, "no labelled images.* must be called 'labels.csv', not 'Labels.CSV'")


@pytest.mark.parametrize("splits", [("train", "val"), ("Test", "training", "val2017"), ("dev",)])
def test_split_folders_are_refused_as_classes(tmp_path, splits):
    for split in splits:
        for name in ("cat/1.png", "dog/2.png"):
            save_image(tmp_path / split / name)
    (tmp_path / "annotations").mkdir()
    first = "Test" if "Test" in splits else splits[-1]
    refused(tmp_path, f"look like splits .*of '.*/{first}' look like the classes .cat, dog.; give")


def test_a_train_among_vehicles_is_a_class(tmp_path):
    for name in ("train/1.png", "bus/2.png"):
        save_image(tmp_path / name)
    assert load(tmp_path)[0].class_names == ("bus", "train")


def test_folders_with_equal_names_are_refused(root):
    save_image(root / "Cat" / "3.png")
    refused(root, "'Cat' is used more than once .labels 'Cat' and 'cat', alike but for case")
    dataset, _ = load(root, allow_equal_names=True)
    assert dataset.class_names == ("Cat (Cat)", "cat (cat)", "dog")
    assert dataset.name_texts == {"Cat (Cat)": "Cat", "cat (cat)": "cat"}
    save_image(root.parent / "accents" / "caf\u00e9" / "1.png")
    save_image(root.parent / "accents" / "cafe\u0301" / "1.png")
    refused(root.parent / "accents", r"labels 'cafe\\u0301' and 'caf\\xe9', alike but for")


def test_the_folder_one_is_in_has_a_name(root, monkeypatch):
    monkeypatch.chdir(root)
    assert load(".")[0].name == "set"
    monkeypatch.chdir(root / "cat")
    assert load("..")[0].name == "set"
    assert load("..")[0].source[0].id == "cat/1.png"


def test_a_number_sign_in_a_folder_separates_nothing(root):
    folder = root.rename(root.parent / "set #1")
    (folder / "classes.json").write_text('{"cat": "a cat", "dog": "a dog"}')
    (folder / "templates.json").write_text('{"one": ["the {}"]}')
    dataset, _ = load(folder, templates=f"{folder}/templates.json#one")
    assert dataset.class_names == ("a cat", "a dog")
    assert dataset.templates == ("the {}",)
    assert dataset.text_files == {
        "classes": f"{folder}/classes.json",
        "templates": f"{folder}/templates.json",
    }


def test_names_that_are_not_utf8(root):
    odd = os.fsdecode(b"caf\xe9")
    save_image(root / "cat" / f"{odd}.png")
    dataset, _ = load(root)
    assert [dataset.source[k].id for k in range(3)] == [
        "cat/1.png",
        r"cat/caf\xe9.png",
        "dog/2.png",
    ]
    (root / "cat" / f"{odd}.png").unlink()
    with pytest.raises(ValueError, match=r"cat/caf\\\\xe9.png"):
        dataset.source[1]
    moved = root.rename(root.parent / odd)
    assert load(moved)[0].name == r"caf\xe9"
    save_image(moved / odd / "1.png")
    refused(moved, r"class folder '.*caf\\\\xe9' is not in UTF-8")


def test_names_may_hold_a_backslash_or_be_long(root):
    for name in ("a\\b.png", f"{'x' * 250}.png", "c:d [1],*.png"):
        save_image(root / "dog" / name)
    source = load(root)[0].source
    assert [source[k].image[:4] for k in range(len(source))] == [b"\x89PNG"] * 5


def test_folders_that_cannot_be_read_are_named(root, monkeypatch):
    save_image(root / "dog" / "closed" / "1.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(image_folder.os, "scandir", scandir)
    refused(root, "The folder '.*/dog/closed' cannot be read. Change its permissions")
    refused_root = root.rename(root.parent / "closed")
    refused(refused_root, "The folder '.*/closed' cannot be read: Permission denied")


def test_images_that_are_too_large_are_named(root):
    with (root / "cat" / "1.png").open("r+b") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # a hole, which takes no space on disk
    refused(root, f"'1.png' of '.*/cat' is larger than {MAX_IMAGE_BYTES} bytes. Shrink it")


def test_folders_nested_deeply_are_read(tmp_path):
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    save_image(deep / "x.png")
    assert read_folder(tmp_path).images == ["d/" * 300 + "x.png"]
