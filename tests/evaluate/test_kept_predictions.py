"""The answers that `python -m grain_jax.evaluate` keeps beside its results, and who reads them."""

import gzip
import json

import numpy as np
import pytest
from stored_results import stored_results
from toy_evaluations import written

from grain_jax import evaluate
from grain_jax.evaluation.kept_predictions import beside


@pytest.fixture
def kept(run, images):
    """The results of an evaluation, beside which the answers are."""
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 0
    return written(run.folder)


def lines_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_answers_are_kept_without_being_asked_for(run, images, tmp_path, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 0
    kept = written(run.folder)
    path = kept.with_name(f"{kept.stem}.predictions.jsonl.gz")
    assert f"Predictions: {path}" in capsys.readouterr().out
    by_name = [line["correct"] for line in lines_of(path) if line["method"] == "name"]
    assert np.mean(by_name) == stored_results(kept)["colours/name"]
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--output={tmp_path}/a.json"]
    assert evaluate.main([*given, f"--predictions={tmp_path}/a.jsonl"]) == 0
    asked_for = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines_of(path) == asked_for
    assert not beside(tmp_path / "a.json").exists()  # in one place, not in two


def test_the_same_answers_are_the_same_bytes_and_stay(run, images, kept, capsys):
    first = beside(kept).read_bytes()
    stamp = beside(kept).stat().st_mtime_ns
    again = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main(again) == 0
    assert beside(kept).stat().st_mtime_ns == stamp
    beside(kept).unlink()  # and come back where they were lost
    assert evaluate.main(again) == 0
    assert beside(kept).read_bytes() == first
    assert f"Predictions: {beside(kept)}" in capsys.readouterr().out


def test_answers_of_other_results_are_not_replaced(run, images, kept, tmp_path):
    before = beside(kept).read_bytes()
    kept.rename(tmp_path / "moved.json")
    run.config.evaluation.alphas = (1.0,)  # of which the name of the file says nothing
    output = f"--output={kept}"
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    assert evaluate.main([*given, output]) == 0
    second = kept.with_name(f"{kept.stem}-2.json")
    assert beside(kept).read_bytes() == before
    assert {line["alpha"] for line in lines_of(beside(second))} == {None, 1.0}
    kept.write_text("{}")
    assert evaluate.main([*given, output, "--overwrite"]) == 0
    assert lines_of(beside(kept)) == lines_of(beside(second))


def test_results_that_are_replaced_leave_no_answers_of_others(run, images, kept, tmp_path):
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--output={kept}", "--overwrite"]
    kept.write_text("{}")
    assert evaluate.main([*given, "--predictions=none"]) == 0
    assert not beside(kept).exists()
    for _ in range(2):  # named as they would be without being asked for
        assert evaluate.main([*given, f"--predictions={beside(kept)}"]) == 0
        assert lines_of(beside(kept))
    other = tmp_path / "new.json"
    answers = f"--predictions={beside(other)}"
    assert evaluate.main([*given[:2], f"--output={other}", answers]) == 0
    assert evaluate.main(["compare", str(other), "--against=name"]) == 0


def test_results_of_any_name_have_answers_of_their_own(run, images, tmp_path):
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    for name in ("step.1", "step.2"):
        assert evaluate.main([*given, f"--output={tmp_path / name}"]) == 0
    found = sorted(path.name for path in tmp_path.glob("step*"))
    assert found == [f"step.{n}{end}" for n in "12" for end in ("", ".predictions.jsonl.gz")]
    assert evaluate.main(["compare", f"{tmp_path}/step.1", f"{tmp_path}/step.2"]) == 0


def test_nothing_is_kept_where_nobody_wants_it(run, images, tmp_path, monkeypatch, capsys):
    given = [f"--checkpoint={run.folder}", f"--data={images}"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()  # is not meant
    assert evaluate.main([*given, "--predictions=none"]) == 0
    assert list((tmp_path / "none").iterdir()) == []
    assert evaluate.main([*given, "--output=/dev/stdout", "--overwrite"]) == 0
    assert [path.suffix for path in run.folder.iterdir() if path.is_file()] == [".json"]
    assert "Predictions" not in capsys.readouterr().out


def test_nothing_is_left_of_an_evaluation_that_fails(run, images):
    (images / "red" / "1.png").write_bytes(b"no image")
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 2
    assert [path.name for path in run.folder.iterdir()] == ["checkpoints"]


def test_results_are_written_where_answers_find_the_disk_full(run, images, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grain_jax.evaluation.kept_predictions.shutil.copyfileobj", full)
    assert evaluate.main([f"--checkpoint={run.folder}", f"--data={images}"]) == 1
    printed = capsys.readouterr()
    assert "the predictions could not be written: [Errno 28] No space left" in printed.err
    assert stored_results(written(run.folder))["colours/name"] == 1.0
    assert not list(run.folder.glob("*predictions*"))


def test_several_models_keep_theirs_in_a_new_folder(run, images, tmp_path, monkeypatch):
    load = evaluate.read_model
    monkeypatch.setattr(evaluate, "read_model", lambda path, **_: load(run.folder))
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    given = f"--checkpoint={run.folder},{tmp_path / 'b'}", f"--data={images}"
    assert evaluate.main([*given, f"--output={tmp_path}/new/out/"]) == 0
    found = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert found == ["b.json", "b.predictions.jsonl.gz", "run.json", "run.predictions.jsonl.gz"]


def test_retrieval_and_phrases_are_kept_too(run, records):
    given = [f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"]
    assert evaluate.main(given) == 0
    methods = {line["method"] for line in lines_of(beside(written(run.folder)))}
    assert methods == {"image_to_text", "text_to_image", "phrase"}


def test_results_are_compared_and_reported_with_what_is_beside_them(
    kept, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["compare", str(kept), "--against=name"]) == 0
    assert "against name (A)" in capsys.readouterr().out
    assert evaluate.main(["report", str(kept), "--output=with.md"]) == 0
    assert evaluate.main(["report", str(kept), "--predictions=none", "--output=without.md"]) == 0
    answers, alone = ((tmp_path / f"{name}.md").read_text() for name in ("with", "without"))
    assert "needs --predictions" in alone
    assert "needs --predictions" not in answers
    beside(kept).unlink()
    assert evaluate.main(["compare", str(kept), "--against=name"]) == 2
    assert "there is none beside it as of results" in capsys.readouterr().err
    assert evaluate.main(["report", str(kept), "--output=without.md", "--overwrite"]) == 0
    assert (tmp_path / "without.md").read_text() == alone


@pytest.mark.parametrize("damage", [lambda bytes: bytes[:-20], lambda bytes: b"{}" + bytes])
def test_damaged_answers_are_named(kept, damage, capsys):
    path = beside(kept)
    path.write_bytes(damage(path.read_bytes()))
    assert evaluate.main(["compare", str(path), "--against=name"]) == 2
    assert f"{path} cannot be unpacked" in capsys.readouterr().err
