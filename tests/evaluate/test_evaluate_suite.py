"""`python -m grain_jax.evaluate`: several checkpoints, suites, and a run that trains."""

import json
import re

import numpy as np
import pytest
from plain_text import plain
from stored_results import stored_results
from toy_encoder import half
from toy_evaluations import png, written

from grain_jax import evaluate


def test_several_checkpoints_are_one_table_and_a_file_each(two_runs, images, capsys):
    first, other = two_runs
    given = [f"--checkpoint={first}", f"--checkpoint={other}", f"--data={images}"]
    assert evaluate.main(given) == 0
    printed = plain(capsys.readouterr().out)
    assert "In all rows: set colours; metric top-1." in printed
    assert re.search(r" name 100.0 \(\S+-100.0\) 61.1 \(\S+-\S+\)", printed)
    assert printed.count("Written to") == 2
    assert stored_results(written(first))["colours/name"] == 1.0
    mistaken = (1 / 3 + 1 / 2 + 1) / 3  # red is nothing to it, green is red as well
    assert stored_results(written(other))["colours/name"] == pytest.approx(mistaken)


def test_files_of_several_go_to_folders_that_are_made(two_runs, images, tmp_path, capsys):
    given = [f"--checkpoint={two_runs[0]},{two_runs[1]}", f"--data={images}"]
    places = [f"--output={tmp_path}/new/", f"--predictions={tmp_path}/said/"]
    assert evaluate.main([*given, *places]) == 0
    names = sorted(run.name for run in two_runs)
    for folder, suffix in (("new", ".json"), ("said", ".jsonl")):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == [
            f"{name}{suffix}" for name in names
        ]
    for run in two_runs:
        lines = (tmp_path / "said" / f"{run.name}.jsonl").read_text().splitlines()
        right = [json.loads(line) for line in lines]
        right = [one["correct"] for one in right if one["method"] == "name"]
        measured = stored_results(tmp_path / "new" / f"{run.name}.json")
        assert np.mean(right) == pytest.approx(measured["colours/name"])
    capsys.readouterr()
    again = [*given, f"--output={tmp_path}/third/", places[1]]
    assert evaluate.main(again) == 2
    said = plain(capsys.readouterr().err)
    assert (
        f"{two_runs[0].name}.jsonl exists; give another file, or --overwrite to replace it" in said
    )
    assert not (tmp_path / "third").exists()


def test_a_file_of_one_model_is_refused_for_several(two_runs, images, tmp_path, capsys, run):
    given = [f"--checkpoint={two_runs[0]},{two_runs[1]}", f"--data={images}"]
    assert evaluate.main([*given, f"--output={tmp_path / 'a.json'}"]) == 2
    assert "--output names one file, and 2 checkpoints" in capsys.readouterr().err
    assert run.asked == []


def newest(folder):
    return max(folder.glob("evaluation_*.json"), key=lambda path: path.stat().st_mtime_ns)


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
        (["--classes=a.txt"], "--classes is of one set; write it under the set"),
        (["--tasks=retrieval"], "--tasks goes with prepared records"),
        (["--counts=a.json"], "--counts=a.json is of one set; write it under the set"),
        (
            ["--counts=cc3m_text", "--allow_missing"],
            "--counts=cc3m_text is of none of the sets col",
        ),
        (["--templates=nothing.txt", "--allow_missing"], "no file 'nothing.txt'"),
        (["--suite_data=nowhere"], "2 of the 2 sets of suite 'mine' are missing"),
    ],
)
def test_what_does_not_go_with_a_suite_is_refused(run, suite, arguments, message, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}", f"--suite={suite}", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert run.asked == []


def test_a_suite_reads_an_option_where_a_set_does(run, suite, capsys):
    given = [f"--checkpoint={run.folder}", f"--suite={suite}", "--allow_missing"]
    suite.write_text('methods = ["waffle"]\n' + suite.read_text())
    assert evaluate.main([*given, "--prompt_ensembling=score"]) == 2
    said = "--prompt_ensembling=score is read by none of the methods waffle; name some of name,"
    assert said in plain(capsys.readouterr().err)
    assert run.asked == []
    suite.write_text(suite.read_text() + 'methods = ["name"]\n')
    assert evaluate.main([*given, "--prompt_ensembling=score"]) == 0


def test_templates_of_every_set_go_before_their_own(run, suite, capsys):
    suite.write_text(suite.read_text() + 'templates = "single"\n')
    own = suite.read_text().replace('name = "colours"', 'name = "colours"\ntemplates = "imagenet"')
    suite.write_text(own)
    given = [f"--checkpoint={run.folder}", f"--suite={suite}", "--allow_missing", "--methods=name"]
    read = {}
    for option in ([], ["--templates=official"]):
        assert evaluate.main([*given, *option]) == 0
        report = json.loads(newest(run.folder).read_text())
        read[len(option)] = report["zero_shot_sets"]["colours"]["templates"]
    assert [(one["file"], one["count"]) for one in read.values()] == [
        ("imagenet", 80),
        ("official", 46),
    ]
    assert read[0]["sha256"] != read[1]["sha256"]


def test_published_counts_are_of_the_sets_that_have_some(run, images, capsys):
    for name, labels in (
        ("cub200", ("Cactus Wren", "House Wren")),
        ("flowers102", ("rose", "iris")),
    ):
        for label, image in zip(labels, ("red", "green"), strict=True):
            (images.parent / name / label).mkdir(parents=True)
            (images.parent / name / label / "1.png").write_bytes(png(image, image, image))
    (images.parent / "own.json").write_text('{"rose": 0, "iris": 1}')
    suite = images.parent / "counted.toml"
    names = ("cub200", "flowers102", "colours")
    own = 'counts = "own.json"\n'
    suite.write_text("".join(f'[[images]]\nname = "{name}"\n' for name in names[:2]) + own)
    suite.write_text(suite.read_text() + '[[images]]\nname = "colours"\n')
    given = [f"--checkpoint={run.folder}", f"--suite={suite}", "--methods=name"]
    assert evaluate.main([*given, "--counts=cc12m_text"]) == 0
    noted = "No counts cc12m_text of colours come with grain_jax."
    assert noted in plain(capsys.readouterr().err)
    report = json.loads(newest(run.folder).read_text())
    counts = {name: one.get("counts") for name, one in report["zero_shot_sets"].items()}
    assert counts["colours"] is None
    files = [(counts[name]["file"], counts[name]["file_sha256"]) for name in names[:2]]
    assert files == [("cub:cc12m_text", None), ("flowers102:cc12m_text", None)]
    assert counts["cub200"]["unseen"] + counts["cub200"]["rare"] > 0
    assert evaluate.main(given) == 0
    report = json.loads(newest(run.folder).read_text())
    assert report["zero_shot_sets"]["flowers102"]["counts"]["file"].endswith("own.json")

    # A set of that name with classes of its own keeps its own counts, and the suite goes on.
    for name in ("rose", "iris"):
        (images.parent / "flowers102" / name).rename(images.parent / "flowers102" / f"{name} X")
    (images.parent / "own.json").write_text('{"rose X": 0, "iris X": 1}')
    assert evaluate.main([*given, "--counts=cc12m_text"]) == 0
    assert "--counts=cc12m_text is left out for it" in plain(capsys.readouterr().err)
    report = json.loads(newest(run.folder).read_text())
    assert report["zero_shot_sets"]["flowers102"]["counts"]["file"].endswith("own.json")
    assert report["zero_shot_sets"]["cub200"]["counts"]["file"] == "cub:cc12m_text"


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
    captured = capsys.readouterr()
    assert "the run has ended at step 7" in captured.err
    printed = [line for line in captured.out.splitlines() if line.startswith("Step ")]
    assert [line.partition(": ")[0] for line in printed] == ["Step 3", "Step 7"]
    assert len(captured.out.splitlines()) == 2
    assert re.match(r"Step 3: colours: name 100\.0 \(\S+-100\.0\), ", printed[0])
    assert re.search(r"\. Written to \S+_step7_\w+\.json$", printed[0])
    assert evaluate.main(given) == 0
    assert len(run.asked) == 2
    assert evaluate.main([*given, "--best"]) == 2
    assert evaluate.main([*given[:2], "--idle_minutes=3"]) == 2
    assert evaluate.main([*given[:2], "--tables"]) == 2
    capsys.readouterr()
    assert evaluate.main([*given, "--tables", "--alphas=1"]) == 0
    assert capsys.readouterr().out.count("Zero-shot classification") == 2


@pytest.fixture
def tests_of_captions(tmp_path):
    """A suite of phrases and of captions, which another one includes."""
    for name, whole in (("a.png", "blue"), ("b.png", "red")):
        (tmp_path / name).write_bytes(png(whole, "red", "green"))
    asked = [{"text": "red", "boxes": [half(0)]}, {"text": "green", "boxes": [half(1)]}]
    lines = [json.dumps({"image": name, "queries": asked}) for name in ("a.png", "b.png")]
    (tmp_path / "seen.jsonl").write_text("\n".join(lines))
    long = {"a.png": "a blue thing", "b.png": "a red thing"}
    lines = [json.dumps({"image": name, "text": text}) for name, text in long.items()]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    (tmp_path / "inner.toml").write_text(
        '[[grounding]]\nname = "seen"\nformat = "jsonl"\ndata = "seen.jsonl"\n'
        '[[compositional]]\nname = "long"\nformat = "retrieval"\ndata = "long.jsonl"\n'
        'images = "."\n'
    )
    path = tmp_path / "outer.toml"
    path.write_text('include = ["inner.toml"]\n')
    return path


def test_phrases_and_captions_are_sets_of_a_suite(two_runs, tests_of_captions, tmp_path, capsys):
    run = two_runs[0]
    given = [f"--checkpoint={run}", f"--suite={tests_of_captions}", f"--cache={tmp_path / 'kept'}"]
    lines = tmp_path / "all.jsonl"
    assert evaluate.main([*given, f"--predictions={lines}"]) == 0
    printed = capsys.readouterr().out
    assert "seen: Protocol: boxes predicted (the boxes that the model predicts)" in printed
    assert "images of 32 pixels, squash, bicubic" in printed
    last = printed.splitlines()[-1]  # the images of both tests are the same
    assert last.startswith("Embeddings: 2 images and 0 texts read")
    path = written(run, "evaluation_outer_step7_")
    results = stored_results(path)
    assert results["seen/region/R@1"] == results["long/retrieval/mean_R@1"] == 1.0
    report = json.loads(path.read_text())
    assert report["splits"]["seen"]["protocols"]["region"]["image_size"] == 32
    assert report["query_usage"] == {"seen": {"region": [2, 2]}}
    answers = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {one["set"] for one in answers} == {"seen", "long"}
    both = [f"--checkpoint={two_runs[0]},{two_runs[1]}", *given[1:], "--overwrite"]
    assert evaluate.main(both) == 0
    shown = plain(capsys.readouterr().out)
    assert re.search(
        r"seen region: region feature R@1 \(Acc@0.5\) 100.0 \(\S+-100.0\) 100.0", shown
    )
    assert re.search(r"long retrieval: both ways mean R@1 100.0", shown)
    for option in ("--alphas=1", "--templates=official", "--counts=cc3m_text"):
        assert evaluate.main([*given, option]) == 2
        assert f"{option.partition('=')[0]} goes with labelled images" in capsys.readouterr().err
