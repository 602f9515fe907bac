from pathlib import Path

import pytest

from grain_jax.evaluate_several import folders, one_a_checkpoint
from grain_jax.evaluation.results_file import check_place, make_folder


@pytest.mark.parametrize(
    "given",
    [
        ["--checkpoint=a", "--data=x", "--checkpoint=b"],
        ["--checkpoint", "a", "--data=x", "--checkpoint", "b"],
        ["--data=x", "--checkpoint=a,b"],
    ],
)
def test_each_checkpoint_gets_the_other_arguments(given):
    assert one_a_checkpoint(given) == [
        ["--checkpoint=a", "--data=x"],
        ["--checkpoint=b", "--data=x"],
    ]


@pytest.mark.parametrize(
    "given",
    [[], ["--data=x"], ["--checkpoint=a"], ["--checkpoint"], ["--data=x,y", "--checkpoint=a"]],
)
def test_one_or_none_is_left_as_it_is(given):
    assert one_a_checkpoint(given) == [given]


def test_a_path_may_have_a_comma(tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert one_a_checkpoint([f"--checkpoint={folder}"]) == [[f"--checkpoint={folder}"]]


def test_a_checkpoint_is_given_once():
    with pytest.raises(ValueError, match="names 'a' twice"):
        one_a_checkpoint(["--checkpoint=a", "--checkpoint=b,a"])


@pytest.mark.parametrize("given", [["--output=new/"], ["--output", "new/"], ["--out=new/"]])
def test_a_folder_gets_a_file_for_each_run(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "b" / "checkpoints").mkdir(parents=True)
    found = one_a_checkpoint([*given, "--checkpoint=runs/a,runs/b/checkpoints,hub/c", "--best"])
    assert found == [
        ["--checkpoint=runs/a", "--best", "--output=new/a.json"],
        ["--checkpoint=runs/b/checkpoints", "--best", "--output=new/b.json"],
        ["--checkpoint=hub/c", "--best", "--output=new/c.json"],
    ]
    assert folders(given) == {"output": Path("new")}


def test_predictions_may_be_in_a_folder_too():
    given = ["--predictions=said/", "--output=new/", "--data=x"]
    assert one_a_checkpoint([*given, "--checkpoint=runs/a,runs/b"]) == [
        [
            *(f"--checkpoint=runs/{name}", "--data=x"),
            *(f"--output=new/{name}.json", f"--predictions=said/{name}.jsonl"),
        ]
        for name in ("a", "b")
    ]
    assert folders(given) == {"output": Path("new"), "predictions": Path("said")}
    with pytest.raises(ValueError, match=r"--predictions=said would get one file, a\.jsonl, for"):
        one_a_checkpoint([given[0], "--checkpoint=1/a,2/a"])


def test_a_folder_that_is_there_needs_no_slash(tmp_path):
    assert folders([f"--output={tmp_path}"]) == {"output": tmp_path}
    assert folders([f"--output={tmp_path}.json", "--data=x/"]) == {}
    (words,) = one_a_checkpoint([f"--output={tmp_path}", "--checkpoint=runs/a"])
    assert words[-1] == f"--output={tmp_path / 'a.json'}"


@pytest.mark.parametrize("option", ["output", "predictions"])
def test_a_folder_is_of_this_machine(option):
    given = [f"--{option}=gs://bucket/said/", "--checkpoint=a,b"]
    with pytest.raises(ValueError, match=f"--{option}: 'gs://bucket/said/' is an address"):
        one_a_checkpoint(given)


def test_two_runs_of_one_name_do_not_share_a_file():
    with pytest.raises(ValueError, match=r"one file, a\.json, for both '1/a' and '2/a'"):
        one_a_checkpoint(["--checkpoint=1/a,2/a", "--output=new/"])


def test_a_place_in_a_folder_is_never_overwritten_unasked(tmp_path):
    folder = tmp_path / "x" / "y"
    check_place("output", folder / "a.json", overwrite=False, made=folder)
    with pytest.raises(ValueError, match="There is no folder"):
        check_place("output", folder / "a.json", overwrite=False)
    make_folder(folder)
    (folder / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="exists; give another file, or --overwrite"):
        check_place("output", folder / "a.json", overwrite=False, made=folder)
    check_place("output", folder / "a.json", overwrite=True, made=folder)
    inside = folder / "a.json" / "z"
    with pytest.raises(ValueError, match=r"cannot be made in .*a\.json"):
        check_place("output", inside / "b.json", overwrite=False, made=inside)
