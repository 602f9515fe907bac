"""Images that are found, lists that are read, and files that are not replaced."""

import json
from pathlib import Path

from predict_calls import call, rows

from grain_jax.answers.files import find_images


def test_what_cannot_be_read_is_named_and_the_status_says_so(loaded_with, make_images, capsys):
    arguments = ["--labels=red,blue", "--csv=out.csv", "--json=out.json", "--out=visualizations"]
    (make_images / "empty").mkdir()
    assert call("broken.png", "in", "gone.png", "empty", "--batch-size=1", *arguments) == 3
    error = capsys.readouterr().err
    assert "Skipped broken.png: 8 bytes are not an image" in error
    assert "Skipped gone.png: there is no such file" in error
    assert "Skipped empty: the folder holds no images" in error
    assert "2 images, 3 skipped" in error
    assert {row["file"] for row in rows(make_images / "out.csv")} == {"in/a.png", "in/deep/a.png"}
    skipped = json.loads((make_images / "out.json").read_text())["skipped"]
    assert [one["file"] for one in skipped] == ["gone.png", "empty", "broken.png"]


def test_nothing_readable_is_a_failure_and_writes_nothing(loaded_with, make_images, capsys):
    assert call("broken.png", "--labels=red,blue", "--csv=out.csv", "--out=visualizations") == 2
    assert "no image could be read" in capsys.readouterr().err
    assert call("gone.png", "--labels=red,blue", "--csv=out.csv") == 2
    assert not (make_images / "out.csv").exists()
    assert not (make_images / "visualizations").exists()


def test_each_image_gets_a_card_of_its_own(loaded_with, make_images, capsys):
    arguments = ["in", "other/a.jpg", "in/*.png", "--phrases=a red eye", "--csv=out.csv"]
    assert call(*arguments, "--out=visualizations") == 0
    visualizations = sorted(
        path.relative_to("visualizations").as_posix() for path in Path("visualizations").rglob("*")
    )
    assert visualizations == ["a-2.png", "a.png", "deep", "deep/a.png"]
    assert {row["file"]: row["visualization"] for row in rows(make_images / "out.csv")} == {
        "in/a.png": "a.png",
        "in/deep/a.png": "deep/a.png",
        "other/a.jpg": "a-2.png",
    }
    before = (make_images / "visualizations/a-2.png").read_bytes()
    assert call(*arguments, "--out=visualizations") == 2
    assert "'out.csv' exists" in capsys.readouterr().err
    assert call("other", "--phrases=a red eye", "--out=visualizations") == 2
    assert (
        "'visualizations/a.png' exists; give another place, or --overwrite"
        in capsys.readouterr().err
    )
    assert (make_images / "visualizations/a-2.png").read_bytes() == before
    assert call("other", "--phrases=a red eye", "--out=visualizations", "--overwrite") == 0
    assert (make_images / "visualizations/a.png").read_bytes() == before


def test_an_image_is_never_replaced_by_its_visualization(loaded_with, make_images, capsys):
    before = (make_images / "in/a.png").read_bytes()
    for given in ("in", "in/a.png", "other"):
        assert call(given, "in", "--out=in", "--overwrite", "--phrases=a red eye") == 2
        assert "'in/a.png' would replace an image" in capsys.readouterr().err
        assert (make_images / "in/a.png").read_bytes() == before


def test_cards_of_a_former_call_are_no_images(make_images):
    (make_images / "in/visualizations").mkdir()
    (make_images / "in/visualizations/a.png").write_bytes(b"")
    found, nothing = find_images(["in"], make_images / "in/visualizations")
    assert [str(target.file) for target in found] == ["in/a.png", "in/deep/a.png"]
    assert nothing == []


def test_links_are_followed_and_lost_ones_named(loaded_with, make_images, capsys):
    (make_images / "links").mkdir()
    (make_images / "links" / "folder").symlink_to(make_images / "other")
    (make_images / "links" / "one.png").symlink_to(make_images / "in/a.png")
    (make_images / "links" / "round").symlink_to(make_images / "links")
    found, nothing = find_images(["links"], None)
    assert [str(target.file) for target in found] == ["links/folder/a.jpg", "links/one.png"]
    assert nothing == []
    (make_images / "links" / "lost.png").symlink_to("gone.png")
    (make_images / "links" / "x.heic").write_bytes(b"")
    assert call("links", "--labels=red,blue") == 3
    printed = capsys.readouterr().err
    assert "Skipped links/lost.png: the link leads nowhere." in printed
    assert "Skipped links/x.heic: this format is not read; convert it, say to PNG." in printed
    assert "2 images, 2 skipped." in printed


def test_a_folder_whose_name_looks_like_a_pattern_is_no_pattern(make_images):
    (make_images / "set [1]").mkdir()
    for name in ("a [2].png", "b.png"):
        (make_images / "in/a.png").rename(make_images / "set [1]" / name)
        (make_images / "set [1]" / name).write_bytes((make_images / "set [1]" / name).read_bytes())
        (make_images / "in/a.png").write_bytes((make_images / "set [1]" / name).read_bytes())
    for given, count in (("set [1]", 2), ("set [1]/*.png", 2), ("set [1]/a [2].png", 1)):
        assert len(find_images([given], None)[0]) == count
    assert len(find_images([str(make_images / "set [1]" / "?.png")], None)[0]) == 1
    assert find_images(["set [2]/*.png"], None)[1] == [
        ("set [2]/*.png", "there is no such file or folder.")
    ]


def test_a_list_in_a_folder_with_a_number_sign_is_read(loaded_with, make_images, capsys):
    folder = make_images / "lists #1"
    folder.mkdir()
    (folder / "l.txt").write_text("red, dark\nblue\n")
    (folder / "l.json").write_text(json.dumps({"C#": ["red", "blue"]}))
    (folder / "p.md").write_text("# A\n```\nclasses = ['red', 'blue']\ntemplates = ['a {}']\n```\n")
    for given, labels in (
        ("lists #1/l.txt", {"red, dark", "blue"}),
        ("lists #1/l.json#C#", {"red", "blue"}),
        ("lists #1/p.md#A", {"red", "blue"}),
    ):
        assert call("in/a.png", f"--labels={given}", "--csv=o.csv", "--overwrite") == 0
        assert {row["text"] for row in rows(make_images / "o.csv")} == labels
    assert call("in/a.png", "--labels=red,blue", "--templates=lists #1/p.md#A") == 0
    capsys.readouterr()
    for gone in ("lists #1/gone", "lists #1/gone.json#C#", "lists #1/L.TXT", "lists #2/l.md#A"):
        assert call("in/a.png", f"--labels={gone}") == 2
        assert f"There is no file {gone!r}" in capsys.readouterr().err
    assert call("in/a.png", "--phrases=lists #1/p.md#A") == 2
    assert "class names and templates only" in capsys.readouterr().err


def test_names_differ_where_case_is_not_told_apart(make_images):
    (make_images / "A.PNG").write_bytes(b"")
    (make_images / "a-2.bmp").write_bytes(b"")
    found, _ = find_images(["in/a.png", "A.PNG", "a-2.bmp", "other/a.jpg", "./A.PNG"], None)
    assert [str(target.visualization) for target in found] == [
        "a.png",
        "A-2.png",
        "a-2-2.png",
        "a-3.png",
    ]


def test_an_empty_text_names_no_image(make_images):
    assert find_images([""], None) == ([], [("''", "there is no such file or folder.")])
