"""`python -m grain_jax.annotate audit`, as it is typed, and what becomes of its decisions."""

import json
from pathlib import Path

import numpy as np
import pytest
from chat_server import chat_server, features_of
from PIL import Image
from plain_text import plain
from tiny_annotations import BOX, by_image, described, grounded, write_rows

pytest.importorskip("pyarrow")

from grain_jax import annotate
from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.annotation.queries import DescriptionQueries
from grain_jax.command_line import ExitStatus
from grain_jax.data.annotation_files import StageFiles, read_annotations
from grain_jax.data.annotation_rows import content_hash
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import IMPORTERS

ALL = (0.0, 0.0, 1.0, 1.0)


def audit(folder: Path, *options: str) -> int:
    return annotate.main(["audit", f"--annotations={folder}", *options])


def report(folder: Path, *options: str) -> dict:
    path = folder.parent / "report.json"
    assert audit(folder, *options, f"--json={path}") == ExitStatus.DONE
    return json.loads(path.read_text(encoding="utf-8"))


def files(folder: Path, stage: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / stage).glob("*.parquet")}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images: one without faults, one with several, one with a box over all of it."""
    folder = tmp_path / "ann"
    scores = {"a red crest": 0.5, "no tail": 0.01}
    write_rows(
        folder,
        "describe",
        described("a.png"),
        described("b.png", ["I'm sorry, I can't.", "A bird."], ["a red crest", "no tail"]),
        described("c.png"),
    )
    return write_rows(
        folder,
        "ground",
        grounded("a.png", {"a red crest": 0.5}, [("a red crest", BOX, 0.5)]),
        grounded("b.png", scores, [("a red crest", BOX, 0.5), ("no tail", BOX, 0.01)]),
        grounded("c.png", {"a red crest": 0.3}, [("a red crest", ALL, 0.3)]),
    )


def test_faults_are_counted_with_examples_and_nothing_is_written(folder, capsys):
    found = report(folder)
    counts = {name: each["images"] for name, each in found["faults"].items() if each["images"]}
    assert counts == {"absence": 1, "refusal": 1, "unexplained": 1, "whole_image": 1}
    assert (found["images"], found["images_with_faults"]) == (3, 2)
    (example,) = found["faults"]["unexplained"]["examples"]
    assert (example["image"], example["text"]) == ("b.png", "no tail")
    assert "0.010" in example["detail"]
    assert not found["faults"]["changed_image"]["looked_for"]
    said = plain(capsys.readouterr().out)
    assert "refusal: b.png, \"I'm sorry, I can't.\"" in said
    assert "2 of 3 images have a fault" in said
    assert not (folder / "audit").exists()


def test_what_is_dropped_is_kept_out_and_comes_back(folder):
    before = by_image(folder)
    stored = {stage: files(folder, stage) for stage in ("describe", "ground")}
    assert audit(folder, "--drop=refusal,absence,whole_image") == ExitStatus.DONE
    found = by_image(folder)
    assert found["a.png"] == before["a.png"]
    assert found["b.png"].captions == ("A bird.",)
    assert found["b.png"].descriptions == ("a red crest",)
    assert [each.description for each in found["b.png"].regions] == ["a red crest"]
    assert found["c.png"].regions == ()
    assert found["c.png"].descriptions == ("a red crest",)
    importer = IMPORTERS["annotations"](folder)
    assert [caption.text for caption in importer[1].captions] == ["A bird."]
    assert [len(importer[index].regions) for index in range(3)] == [1, 1, 0]
    # Decisions on other faults stay; those that are kept come back.
    assert audit(folder, "--keep=absence") == ExitStatus.DONE
    assert by_image(folder)["b.png"].descriptions == before["b.png"].descriptions
    assert by_image(folder)["b.png"].captions == ("A bird.",)
    assert audit(folder, "--keep=refusal,whole_image") == ExitStatus.DONE
    assert by_image(folder) == before
    assert {stage: files(folder, stage) for stage in stored} == stored


def test_the_same_decision_is_written_once(folder):
    for _ in range(2):
        assert report(folder, "--drop=absence,unexplained")["faults"]["absence"]["decided"] == {
            "drop": 1
        }
    assert len(StageFiles(folder, "audit")) == 1
    assert report(folder, "--drop=absence")["images_decided_now"] == 0
    assert report(folder, "--keep=truncated")["images_decided_now"] == 0


def test_what_prepare_has_built_is_known_to_be_older_than_a_decision(folder):
    before = IMPORTERS["annotations"](folder)
    assert audit(folder, "--drop=absence") == ExitStatus.DONE
    after = IMPORTERS["annotations"](folder)
    assert before.fingerprint() != after.fingerprint()
    assert before.checksum(0, 1) == after.checksum(0, 1)
    assert before.checksum(1, 2) != after.checksum(1, 2)


def test_what_is_dropped_is_not_looked_for_again(folder):
    before = DescriptionQueries(folder).texts("b.png")
    assert audit(folder, "--drop=absence,unexplained") == ExitStatus.DONE
    assert DescriptionQueries(folder).texts("b.png") == before


def test_a_decision_counts_only_for_the_rows_that_it_is_about(folder, capsys):
    assert audit(folder, "--drop=unexplained") == ExitStatus.DONE
    assert by_image(folder)["b.png"].descriptions == ("a red crest",)
    scores = {"a red crest": 0.5, "no tail": 0.7}
    write_rows(folder, "ground", grounded("b.png", scores))  # by a better detector
    assert by_image(folder)["b.png"].descriptions == ("a red crest", "no tail")
    importer = IMPORTERS["annotations"](folder)
    assert "1 images have decisions" in importer.notes[0]
    assert report(folder)["images_with_outdated_decisions"] == 1
    assert "do not count" in plain(capsys.readouterr().out)
    assert report(folder, "--drop=unexplained")["images_with_outdated_decisions"] == 0
    assert by_image(folder)["b.png"].descriptions == ("a red crest", "no tail")


def test_a_repeated_text_is_found_in_the_whole_collection(tmp_path):
    same = "This is an image of a bird"
    captions = [same, f"{same}.", same.lower(), "Another."]
    rows = [described(f"{i}.png", [text], [f"part {i}"]) for i, text in enumerate(captions)]
    folder = write_rows(tmp_path / "ann", "describe", *rows)
    assert report(folder)["faults"]["repeated"]["images"] == 0
    found = report(folder, "--min_repeats=3", "--drop=repeated")["faults"]["repeated"]
    assert found["images"] == 3
    assert {each["text"] for each in found["examples"]} == set(captions[:3])
    assert "in 3 whatever its case" in found["examples"][0]["detail"]
    assert [len(each.captions) for each in by_image(folder).values()] == [0, 0, 0, 1]


def test_texts_that_the_official_code_did_not_look_for_are_not_unexplained(tmp_path):
    scores = {f"part {number}": 0.9 if number < 9 else 0.0 for number in range(12)}
    row = grounded("a.png", scores, sampling='{"official_texts": true}')
    folder = write_rows(tmp_path / "ann", "ground", row)
    assert report(folder)["faults"]["unexplained"]["findings"] == 1


def test_images_that_were_changed_are_left_out(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for name in ("a.png", "b.png", "c.png"):
        (images / name).write_bytes(name.encode())
        rows.append(described(name, image_hash=content_hash(name.encode())))
    folder = write_rows(tmp_path / "ann", "describe", *rows)
    (images / "b.png").write_bytes(b"another")
    (images / "c.png").unlink()
    assert audit(folder, f"--images={images}", "--drop=changed_image") == ExitStatus.DONE
    found = by_image(folder)
    assert [each.dropped for each in found.values()] == [None, "changed_image", "changed_image"]
    importer = IMPORTERS["annotations"](folder)
    with pytest.raises(SkippedSample, match=r"b\.png") as raised:
        importer[1]
    assert raised.value.reason == "rejected by audit (changed_image)"
    assert audit(folder, "--keep=changed_image") == ExitStatus.DONE
    assert not any(each.dropped for each in by_image(folder).values())


NEW_AND_BETTER = (["A red bird."], ["a blue wing"], {"a blue wing": 0.6})
NEW_AND_WORSE = (["A bird with a"], ["no beak", "no tail"], {"no beak": 0.0, "no tail": 0.0})


@pytest.mark.parametrize(
    ("new", "better"), [(NEW_AND_BETTER, True), (NEW_AND_WORSE, False)], ids=["better", "worse"]
)
def test_of_two_descriptions_the_better_is_kept(folder, new, better):
    """And of their boxes; taking the decision back gives the newer one."""
    before = by_image(folder)["b.png"]
    assert report(folder, "--retry=absence")["faults"]["absence"]["decided"] == {"retry": 1}
    assert read_annotations(folder).to_describe_again() == {"b.png"}
    assert by_image(folder)["b.png"] == before
    captions, descriptions, scores = new
    write_rows(folder, "describe", described("b.png", captions, descriptions))
    assert read_annotations(folder).to_describe_again() == set()
    waiting = report(folder, "--retry=absence")
    assert waiting["images_waiting_for_ground"] == 1
    regions = [(text, BOX, score) for text, score in scores.items()]
    write_rows(folder, "ground", grounded("b.png", scores, regions))
    newer = by_image(folder)["b.png"]
    verdict = "kept_newer" if better else "kept_earlier"
    for _ in range(2):
        judged = report(folder, "--retry=absence")
        assert judged["faults"]["absence"]["decided"] == {verdict: 1}
        assert by_image(folder)["b.png"] == (newer if better else before)
        assert read_annotations(folder).to_describe_again() == set()
    assert len(StageFiles(folder, "audit")) == 2
    # It can still be dropped, and all of it taken back.
    assert report(folder, "--drop=absence")["faults"]["absence"]["images"] == (not better)
    assert by_image(folder)["b.png"].descriptions == (
        newer.descriptions if better else ("a red crest",)
    )
    assert audit(folder, "--keep=absence") == ExitStatus.DONE
    assert by_image(folder)["b.png"] == newer


def test_an_earlier_description_that_was_kept_gives_way_to_a_newer_row(folder):
    assert audit(folder, "--retry=absence") == ExitStatus.DONE
    write_rows(folder, "describe", described("b.png", NEW_AND_WORSE[0], NEW_AND_WORSE[1]))
    write_rows(folder, "ground", grounded("b.png", NEW_AND_WORSE[2]))
    assert audit(folder, "--retry=absence") == ExitStatus.DONE
    assert by_image(folder)["b.png"].descriptions == ("a red crest", "no tail")
    # `ground` looks for the earlier texts once more; then its row counts.
    write_rows(folder, "ground", grounded("b.png", {"a red crest": 0.7, "no tail": 0.0}))
    assert by_image(folder)["b.png"].descriptions == ("a red crest", "no tail")
    assert read_annotations(folder).rows(1)["ground"].outputs["best_scores"] == [0.7, 0.0]
    write_rows(folder, "describe", described("b.png", ["A crow."], ["a black wing"]))
    assert by_image(folder)["b.png"].captions == ("A crow.",)


def test_an_image_is_sent_back_as_often_as_allowed(folder):
    for tries, expected in ((1, set()), (2, {"b.png"})):
        assert audit(folder, "--retry=refusal") == ExitStatus.DONE
        texts = [f"Sorry, {tries}."], [f"part {tries}"]
        if tries == 1:
            write_rows(folder, "describe", described("b.png", *texts))
            write_rows(folder, "ground", grounded("b.png", {"part 1": 0.5}))
            assert audit(folder, "--retry=refusal") == ExitStatus.DONE
        assert audit(folder, "--retry=refusal", f"--max_retries={tries}") == ExitStatus.DONE
        assert read_annotations(folder).to_describe_again() == expected


def test_an_image_that_the_detector_looks_at_without_descriptions_does_not_wait(tmp_path):
    folder = write_rows(tmp_path / "ann", "describe", described("a.png", ["Sorry, no."]))
    scores = {"a class description": 0.5}
    write_rows(folder, "ground", grounded("a.png", scores, input_hash="9" * 64))
    assert audit(folder, "--retry=refusal") == ExitStatus.DONE
    write_rows(folder, "describe", described("a.png", ["A crow."]))
    found = report(folder, "--retry=refusal")
    assert found["images_waiting_for_ground"] == 0
    assert found["faults"]["refusal"]["decided"] == {"kept_newer": 1}


@pytest.mark.multiprocess
def test_describe_does_again_what_was_sent_back_and_nothing_else(tmp_path, capsys):
    images, folder = tmp_path / "images", tmp_path / "ann"
    images.mkdir()
    for name in ("a.png", "b.png"):
        pixels = np.full((8, 8, 3), ord(name[0]), np.uint8)
        Image.fromarray(pixels).save(images / name)
    with chat_server() as server:
        options = [f"--endpoint={server.url}", "--model=tiny", "--concurrency=1"]
        command = ["describe", f"--images={images}", f"--output={folder}", *options]
        assert annotate.main(command) == 0
        write_rows(folder, "describe", described("b.png", ["I cannot say."], ["a crest with"]))
        assert audit(folder, "--retry=refusal,truncated") == ExitStatus.DONE
        asked = len(server.log())
        capsys.readouterr()
        assert annotate.main(command) == 0
        assert len(server.log()) == asked + 2
        assert "sent back by audit" in plain(capsys.readouterr().out)
        assert annotate.main(command) == 0
        assert len(server.log()) == asked + 2
    assert report(folder, "--retry=refusal")["faults"]["truncated"]["decided"] == {"kept_newer": 1}
    sent = as_jpeg(load_image("b.png", images), 768)
    assert by_image(folder)["b.png"].descriptions == tuple(features_of(sent))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drop=refusals"], "'refusals' is not a fault; expected some of repeated, absence"),
        (["--drop=refusal", "--keep=absence,refusal"], "refusal is in two of"),
        (["--drop=changed_image"], "give --images=DIR too"),
        (["--images=/nowhere"], "--images=/nowhere is not a folder"),
        (["--min_score=2"], "a number from 0 to 1"),
        (["--json=/nowhere/report.json"], "/nowhere"),
    ],
)
def test_a_mistake_is_named(folder, capsys, options, said):
    assert audit(folder, *options) == ExitStatus.MISTAKE
    assert said in plain(capsys.readouterr().err)
    assert not (folder / "audit").exists()


def test_another_folder_is_refused_and_left_alone(tmp_path, capsys):
    assert audit(tmp_path, "--drop=refusal") == ExitStatus.MISTAKE
    assert "has no annotations.json" in plain(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
