""" "~" wherever a path is taken, files that are UTF-8 under any locale, names that are not."""

import ast
import csv
import json
import os
import pwd
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_text import plain
from toy_encoder import columns, toy_model

import grain_jax
from grain_jax import (
    bench,
    evaluate,
    evaluate_compare,
    evaluate_compositional,
    evaluate_leaks,
    evaluate_report,
    export,
    predict,
    prepare,
    prepare_inspect,
    runtime,
    train,
)
from grain_jax.config import DataConfig
from grain_jax.config.cli import load_config
from grain_jax.data.classification.folders import load_zero_shot, read_texts
from grain_jax.data.source import open_source
from grain_jax.data.synthetic_birds import __main__ as world
from grain_jax.data.tokenizer import HuggingFaceTokenizer
from grain_jax.loading.load import read_model
from grain_jax.paths import expand_home, local_path, user_path

PACKAGE = Path(grain_jax.__file__).parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, beside the current one."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number that no account has."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert user_path("~/x/y") == home / "x/y"
    assert user_path("~") == home
    assert user_path(Path("~/x")) == home / "x"
    for name in ("x", "a~/b", "./~", "~nobody-is-called-so.png", "~$draft.csv"):
        assert expand_home(name) == name


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_the_message_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="'~/x' starts at a home folder, and this process has"):
        user_path("~/x")
    assert user_path("x") == Path("x")
    options = ["--from=jsonl", "--input=~/a.jsonl", f"--images={tmp_path}", f"--out={tmp_path}/o"]
    assert prepare.main(options) == 2
    printed = plain(capsys.readouterr().err)
    assert "--input" in printed
    assert "set HOME, or give the whole path" in printed


@pytest.mark.usefixtures("no_home")
def test_without_a_home_folder_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(runtime.jax.config, "update", given.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    runtime.cache_compilations("auto")
    assert given == {"jax_compilation_cache_dir": None}


def test_every_command_and_setting_takes_a_tilde(home: Path, monkeypatch) -> None:
    for name in ("photos", "classes/owl", "classes/wren"):
        (home / name).mkdir(parents=True)
        Image.fromarray(columns("red", "blue")).save(home / name / "a.png")
    (home / "in.jsonl").write_text('{"image": "a.png", "captions": ["x"]}\n', encoding="utf-8")
    (home / "labels.txt").write_text("red\nblue\n", encoding="utf-8")
    source = "--from=jsonl", "--input=~/in.jsonl", "--images=~/photos", "--workers=1"
    assert prepare.main([*source, "--out=~/set"]) == 0
    data = DataConfig(dataset="tfds", data_dir="~/set")
    assert len(open_source(data, "train", image_size=8)) == 1

    monkeypatch.setattr(predict, "load", lambda path, **_: toy_model())
    outputs = "--out=~/cards", "--csv=~/a.csv", "--json=~/a.json"
    options = "--checkpoint=~/run", "--labels=~/labels.txt", *outputs
    assert predict.main(["~/photos", *options]) == 0
    assert predict.main(["~/pho*/*.png", *options, "--overwrite"]) == 0
    assert (home / "cards" / "a.png").is_file()
    assert (home / "a.csv").is_file()
    assert (home / "a.json").is_file()
    assert len(toy_model().embed_images(["~/photos/a.png"], on_error="stop").boxes_xyxy) == 1

    assert load_zero_shot("~/classes", note=lambda _: None).class_names == ("owl", "wren")
    assert read_texts("~/labels.txt") == ["red", "blue"]
    assert local_path("~/run") == home / "run"
    (home / "run").mkdir()
    for read in (read_model, grain_jax.load):
        with pytest.raises(ValueError, match=f"no supported model in {home}/run"):
            read("~/run")
    with pytest.raises(ValueError, match=f"there is no file '{home}/own.py'"):
        load_config("~/own.py")
    assert list(Path().iterdir()) == []  # above all, no folder called "~"


def test_a_tokenizer_takes_a_tilde(home: Path) -> None:
    pytest.importorskip("transformers", reason="a folder of transformers")
    with pytest.raises(ValueError, match=f"No tokenizer '{home}/words'"):
        HuggingFaceTokenizer.load("~/words")


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Calls of functions and methods of this name, with their places."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else None
                called = node.func.id if isinstance(node.func, ast.Name) else called
                if called == name:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return found


@pytest.mark.parametrize(
    "options",
    [
        evaluate.Options,
        predict.Options,
        export.Options,
        prepare.Options,
        bench.StepOptions,
        bench.EvalOptions,
        bench.CheckpointOptions,
        prepare_inspect.Options,
        evaluate_compare.Options,
        evaluate_report.Options,
        evaluate_compositional.Options,
        evaluate_leaks.Options,
        world.Options,
    ],
)
def test_no_option_takes_a_bare_path(options: type, home: Path) -> None:
    """Options that are paths are read by `user_path`, which knows "~"."""
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        declared, *notes = typing.get_args(hint) or [hint]
        if declared in (Path, Path | None):
            read = [note.instance_from_str for note in notes if hasattr(note, "nargs")]
            assert [one(["~/x"]) for one in read] == [home / "x"], name


def test_only_paths_expands_a_tilde() -> None:
    """Else a process without a home folder makes one called "~"."""
    assert [place for place, _ in calls("expanduser") if not place.startswith("paths.py")] == []


@pytest.mark.slow
def test_text_files_have_an_encoding_whatever_the_locale() -> None:
    """Without one, LC_ALL=C writes ASCII, and fails at the first caption with an accent."""
    bare = []
    for name in ("open", "read_text", "write_text"):
        for place, call in calls(name):
            words = {word.arg for word in call.keywords}
            modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
            binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
            bytes_only = ast.unparse(call.func) in ("Image.open", "os.open", "tarfile.open")
            if "encoding" not in words and not binary and not bytes_only:
                bare.append(f"{place}: {ast.unparse(call)}")
    assert bare == []


def test_a_name_that_is_not_utf8_is_shown_and_written(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9.png")  # latin-1
    try:
        Path(name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(name)
    monkeypatch.setattr(predict, "load", lambda path, **_: toy_model())
    options = "--checkpoint=run", "--labels=red,blue", "--csv=a.csv", "--json=a.json", "--out=cards"
    assert predict.main([".", *options]) == 0
    assert "caf\\udce9.png" in capsys.readouterr().out
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["images"][0]["file"] == name
    with Path("a.csv").open(encoding="utf-8", newline="") as lines:
        assert next(csv.DictReader(lines))["file"] == "caf\\udce9.png"
    assert Path("cards", name).is_file()


def test_a_workdir_is_in_no_other_store(capsys) -> None:
    assert train.main(["--workdir=s3://bucket/run"]) == 2
    assert "--workdir: 's3://bucket/run' is an address" in " ".join(capsys.readouterr().err.split())
