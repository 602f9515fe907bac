"""`python -m grain_jax.annotate review`, as it is typed, and what becomes of decisions."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from plain_text import plain
from tiny_annotations import BOX, by_image, described, grounded, write_rows

pytest.importorskip("pyarrow")

from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax import annotate
from grain_jax.annotation.review.apply import read_decisions
from grain_jax.command_line import ExitStatus
from grain_jax.data.annotation_files import StageFiles
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import IMPORTERS

RIGHT = (0.6, 0.1, 0.9, 1.0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """ann with three images, of which each has two regions, and the images."""
    return make(tmp_path)


def make(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    scores = {"a red crest": 0.5, "a long tail": 0.3}
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (40, 30), (9, 99, 9)).save(folder / "images" / name)
        regions = [("a red crest", BOX, 0.5), ("a long tail", RIGHT, 0.3)]
        write_rows(folder / "ann", "describe", described(name, descriptions=list(scores)))
        write_rows(folder / "ann", "ground", grounded(name, scores, regions))
    return folder


def review(folder: Path, *options: str) -> int:
    return annotate.main(["review", f"--annotations={folder / 'ann'}", *options])


def page_data(folder: Path, *options: str) -> dict:
    """The data of a new page."""
    page = folder / "page.html"
    made = [f"--images={folder / 'images'}", f"--output={page}", "--overwrite"]
    assert review(folder, *made, *options) == ExitStatus.DONE
    match = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    return json.loads(match[1])


def decided(data: dict, verdicts: dict[str, str | None], rejected: dict[str, list[int]]) -> dict:
    """What the page exports, as its script makes it."""
    images = {each["name"]: each for each in data["images"]}
    return {
        "format": data["format"],
        "version": data["version"],
        "decisions": [
            {
                "image": name,
                "rows": images[name]["rows"],
                "verdict": verdict,
                "rejected_regions": [
                    {
                        "description": images[name]["regions"][region][0],
                        "box_xyxy": images[name]["regions"][region][2],
                    }
                    for region in rejected.get(name, [])
                ],
            }
            for name, verdict in verdicts.items()
        ],
    }


def apply(folder: Path, decisions: object) -> int:
    path = folder / "decisions.json"
    path.write_text(json.dumps(decisions), encoding="utf-8")
    return review(folder, f"--apply={path}")


def test_decisions_are_applied_shown_again_and_taken_back(folder, capsys):
    data = page_data(folder)
    before = by_image(folder / "ann")
    verdicts = {"a.png": "accept", "b.png": "reject", "c.png": None}
    decisions = decided(data, verdicts, {"a.png": [1], "c.png": [0]})
    assert apply(folder, decisions) == ExitStatus.DONE
    assert re.search(r"boxes rejected\D+2\b", capsys.readouterr().out)
    found = by_image(folder / "ann")
    assert [each.description for each in found["a.png"].regions] == ["a red crest"]
    assert found["b.png"].dropped == "review"
    assert [each.description for each in found["c.png"].regions] == ["a long tail"]
    assert found["a.png"].descriptions == before["a.png"].descriptions
    importer = IMPORTERS["annotations"](folder / "ann")
    assert len(importer[0].regions) == 1
    with pytest.raises(SkippedSample, match=r"b\.png") as raised:
        importer[1]
    assert raised.value.reason == "rejected by review"
    # A new page begins with them.
    again = page_data(folder)
    assert [each["verdict"] for each in again["images"]] == ["accept", "reject", ""]
    assert [each["rejected"] for each in again["images"]] == [[1], [], [0]]
    assert [each["rows"] for each in again["images"]] == [each["rows"] for each in data["images"]]
    assert all(len(each["regions"]) == 2 for each in again["images"])
    assert apply(folder, decided(again, dict.fromkeys(verdicts), {})) == ExitStatus.DONE
    assert by_image(folder / "ann") == before


def test_applied_twice_nothing_is_written_twice(folder):
    decisions = decided(page_data(folder), {"a.png": "accept", "b.png": None}, {"a.png": [0, 1]})
    for _ in range(2):
        assert apply(folder, decisions) == ExitStatus.DONE
        assert len(StageFiles(folder / "ann", "review")) == 1
        assert by_image(folder / "ann")["a.png"].regions == ()


def test_decisions_of_another_folder_are_refused(folder, tmp_path_factory, capsys):
    other = make(tmp_path_factory.mktemp("other"))  # the same images and texts
    decisions = decided(page_data(other), {"a.png": "reject"}, {})
    assert apply(folder, decisions) == ExitStatus.MISTAKE
    assert "other annotations than those in" in plain(capsys.readouterr().err)
    decisions["decisions"][0]["image"] = "z.png"
    assert apply(folder, decisions) == ExitStatus.MISTAKE
    assert "'z.png'" in plain(capsys.readouterr().err)
    assert not (folder / "ann" / "review").exists()


def test_a_decision_on_what_was_made_anew_since_is_counted_and_not_applied(folder, capsys):
    decisions = decided(page_data(folder), {"a.png": "reject", "b.png": "reject"}, {})
    write_rows(folder / "ann", "describe", described("a.png", ["A crow."]))
    assert apply(folder, decisions) == ExitStatus.DONE
    assert re.search(r"made anew since the page, not applied\D+1\b", capsys.readouterr().out)
    found = by_image(folder / "ann")
    assert (found["a.png"].dropped, found["b.png"].dropped) == (None, "review")
    write_rows(folder / "ann", "describe", described("b.png", ["A crow."]))
    assert by_image(folder / "ann")["b.png"].captions == ("A crow.",)


def test_audit_and_review_both_leave_out(folder):
    assert annotate.main(["audit", f"--annotations={folder / 'ann'}", "--drop=unexplained",
                          "--min_score=0.4"]) == ExitStatus.DONE  # fmt: skip
    data = page_data(folder)
    assert [[text for text, *_ in each["regions"]] for each in data["images"]] == [
        ["a red crest"]
    ] * 3
    assert apply(folder, decided(data, {"a.png": None}, {"a.png": [0]})) == ExitStatus.DONE
    assert by_image(folder / "ann")["a.png"].regions == ()
    assert annotate.main(["audit", f"--annotations={folder / 'ann'}", "--keep=unexplained"]) == 0
    found = by_image(folder / "ann")["a.png"].regions
    assert [each.description for each in found] == ["a long tail"]


def test_a_page_of_a_sample_and_with_the_images_inside(folder):
    data = page_data(folder, "--sample=2", "--embed=20")
    assert len(data["images"]) == 2
    assert all(each["source"].startswith("data:image/jpeg;base64,") for each in data["images"])


def test_a_page_is_not_replaced_unasked(folder, capsys):
    page_data(folder)
    options = f"--images={folder / 'images'}", f"--output={folder / 'page.html'}"
    assert review(folder, *options) == ExitStatus.MISTAKE
    assert "--overwrite" in plain(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, '"format": "grain_jax review"'),
        ({"version": 2}, "version 2"),
        ({"decisions": {}}, "decisions should be a list"),
        ({"decisions": [3]}, "decisions[0] should be an object"),
        ({"image": 3}, "decisions[0].image should be a text"),
        ({"rows": None}, "decisions[0].rows"),
        ({"verdict": "maybe"}, "decisions[0].verdict is 'maybe'"),
        ({"rejected_regions": 3}, "decisions[0].rejected_regions"),
        ({"rejected_regions": [{}]}, "rejected_regions[0].description"),
        (
            {"rejected_regions": [{"description": "x", "box_xyxy": [0, 1, True, 1]}]},
            "rejected_regions[0].box_xyxy should be four numbers",
        ),
        (
            {"rejected_regions": [{"description": "a hat", "box_xyxy": [0, 0, 1, 1]}]},
            "a.png: it has no region 'a hat' there",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(folder, capsys, change, said):
    decisions = decided(page_data(folder), {"a.png": "accept"}, {})
    (name,) = change
    (decisions if name in decisions else decisions["decisions"][0]).update(change)
    assert apply(folder, decisions) == ExitStatus.MISTAKE
    assert said in plain(capsys.readouterr().err)
    assert len(StageFiles(folder / "ann", "review")) == 0


def test_an_image_that_is_decided_twice_is_refused(folder, capsys):
    decisions = decided(page_data(folder), {"a.png": "accept"}, {})
    decisions["decisions"] *= 2
    assert apply(folder, decisions) == ExitStatus.MISTAKE
    assert "decisions[1] is the second one of 'a.png'" in plain(capsys.readouterr().err)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("image", "rows", "verdict", "rejected_regions", "description", "box_xyxy")
            ),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(decisions=json_values, text=st.none() | st.text(max_size=30))
def test_no_file_is_too_odd(tmp_path_factory, decisions, text):
    """It is read, or refused by a ValueError that names it."""
    path = tmp_path_factory.mktemp("odd") / "decisions.json"
    content = {"format": "grain_jax review", "version": 1, "decisions": decisions}
    path.write_text(json.dumps(content) if text is None else text, encoding="utf-8")
    try:
        assert isinstance(read_decisions(path), list)
    except ValueError as error:
        said = str(error)
    else:
        return
    assert str(path) in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give --images=DIR and --output=page.html, or --apply=decisions.json"),
        (["--images=/nowhere", "--output=page.html"], "--images=/nowhere is not a folder"),
        (["--images=/tmp", "--output=page.txt"], "--output=page.txt should end in .html"),
        (["--apply=x.json", "--embed=20"], "--embed is for a page"),
        (["--apply=/nowhere.json"], "/nowhere.json"),
    ],
)
def test_a_mistake_is_named(folder, capsys, options, said):
    assert review(folder, *options) == ExitStatus.MISTAKE
    assert said in plain(capsys.readouterr().err)
