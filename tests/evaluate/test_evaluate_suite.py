"""`python -m grain_jax.evaluate`: several checkpoints, suites, and a run that trains."""

import json
import re

import pytest
from plain_text import plain
from stored_results import stored_results
from toy_evaluations import written

from grain_jax import evaluate


def test_several_checkpoints_are_one_table_and_a_file_each(two_runs, images, capsys):
    first, other = two_runs
    given = [f"--checkpoint={first}", f"--checkpoint={other}", f"--data={images}"]
    assert evaluate.main(given) == 0
    printed = plain(capsys.readouterr().out)
    assert re.search(r"colours name top-1 100.0 ± \S+ 61.1 ± ", printed)
    assert printed.count("Written to") == 2
    assert stored_results(written(first))["colours/name"] == 1.0
    mistaken = (1 / 3 + 1 / 2 + 1) / 3  # red is nothing to it, green is red as well
    assert stored_results(written(other))["colours/name"] == pytest.approx(mistaken)


def test_a_file_of_one_model_is_refused_for_several(two_runs, images, tmp_path, capsys, run):
    given = [f"--checkpoint={two_runs[0]},{two_runs[1]}", f"--data={images}"]
    assert evaluate.main([*given, f"--output={tmp_path / 'a.json'}"]) == 2
    assert "--output names one file, and 2 checkpoints" in capsys.readouterr().err
    assert run.asked == []


@pytest.fixture
def suite(images):
    path = images.parent / "mine.toml"
    path.write_text(
        'note = "Of colours."\nalphas = [0.25]\n[[images]]\nname = "colours"\nnum_images = 3\n'
        '[[images]]\nname = "absent"\n'
    )
    return path


def test_a_suite_is_measured_with_what_it_has(run, suite, capsys):
    given = [f"--checkpoint={run.folder}", f"--suite={suite}"]
    assert evaluate.main(given) == 2
    assert f"absent: no folder '{suite.parent / 'absent'}'" in capsys.readouterr().err
    assert run.asked == []
    assert evaluate.main([*given, "--allow_missing"]) == 0
    printed = plain(capsys.readouterr().out)
    assert "average over 1 of 2 sets" in printed
    assert "Of colours." in printed
    path = written(run.folder, "evaluation_mine_step7_")
    results = stored_results(path)
    assert results["colours/description/alpha0.25"] == 1.0
    assert results["mine/name/average"] == 1.0
    report = json.loads(path.read_text())
    assert report["settings"]["suite"]["missing"] == ["absent"]
    assert report["settings"]["alphas"] == [0.25]
    assert evaluate.main([*given, "--allow_missing", "--alphas=0.75"]) == 0  # the user's go first
    assert "alpha 0.75" in plain(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=."], "--suite and --data both say what to measure"),
        (["--templates=a.txt"], "--templates is of one set; write it under the set"),
        (["--tasks=retrieval"], "--tasks goes with prepared records"),
        (["--suite_data=nowhere"], "2 of the 2 sets of suite 'mine' are missing"),
    ],
)
def test_what_does_not_go_with_a_suite_is_refused(run, suite, arguments, message, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", f"--suite={suite}", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert run.asked == []


def test_options_of_suites_need_one(run, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", "--allow_missing"]) == 2
    assert "--allow_missing goes with --suite" in capsys.readouterr().err
    assert evaluate.main([f"--checkpoint={run.folder}", "--suite=grain12"]) == 2
    assert "did you mean 'grain11'" in capsys.readouterr().err


def test_a_run_is_watched_to_its_end(run, images, capsys):
    for step in (3, 7):
        place = run.folder / "checkpoints" / str(step)
        (place / "metadata").mkdir(parents=True)
        (place / "metadata" / "metadata").write_text('{"config": {"steps": 7}}')
        (place / "_CHECKPOINT_METADATA").touch()
    given = [f"--checkpoint={run.folder}", f"--data={images}", "--watch"]
    assert evaluate.main(given) == 0
    assert [step for _, step, _ in run.asked] == [3, 7]
    lines = (run.folder / "watch_results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    top1 = [one for one in found if (one["method"], one["metric"]) == ("name", "top1")]
    assert [(one["step"], one["value"]) for one in top1] == [(3, 1.0), (7, 1.0)]
    assert "the run has ended at step 7" in capsys.readouterr().err
    assert evaluate.main(given) == 0
    assert len(run.asked) == 2
    assert evaluate.main([*given, "--best"]) == 2
    assert evaluate.main([*given[:2], "--idle_minutes=3"]) == 2
