"""Full disks, quotas and missing rights: one sentence, no traceback, nothing half written.

A limit on the size of files stands for the full disk: libraries meet both in the same place.
"""

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_model
from toy_encoder import columns, toy_model

from grain_jax import evaluate, evaluate_files, export, predict, prepare
from grain_jax.command_line import ExitStatus
from grain_jax.data.tfds_records import RecordSource, write_shard
from grain_jax.disk import cannot_write, disk_trouble, is_partial, whole_folder, write_whole
from grain_jax.evaluation.kept_predictions import Answers, beside, keeping_answers
from grain_jax.evaluation.predictions import PredictionsFile
from grain_jax.evaluation.results_file import write_results
from grain_jax.formats.grain_reference_files import Official

TOO_LARGE = os.strerror(errno.EFBIG)


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_prepare_says_it_and_goes_on_later(tmp_path: Path, capsys) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    lines = '{"image": "a.png", "captions": ["x"]}\n' * 20
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    command = [
        *("--from=jsonl", f"--input={tmp_path / 'in.jsonl'}", f"--images={tmp_path}"),
        *(f"--out={tmp_path / 'out'}", "--workers=1"),
    ]
    with largest_file(20_000):
        assert prepare.main(command) == 1
    error = capsys.readouterr().err
    assert TOO_LARGE in error
    assert "The same command continues" in error
    assert list((tmp_path / "out").rglob("*.partial")) == []
    assert prepare.main(command) == 0
    assert len(RecordSource(tmp_path / "out", "train")) == 20


DENIED = errno.EACCES, os.strerror(errno.EACCES)


def test_prepare_tells_reading_from_writing(tmp_path: Path, monkeypatch, capsys) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.touch()
    command = ["--from=jsonl", f"--input={source}", f"--images={tmp_path}", f"--out={out}"]
    for path, advice in ((source, False), (out / "a", True), (tmp_path / "outer", False)):

        def denied(*_, path=path, **__) -> None:
            raise PermissionError(*DENIED, str(path))

        monkeypatch.setattr(prepare, "build_split", denied)
        assert prepare.main(command) == 1
        error = capsys.readouterr().err
        assert f"{DENIED[1]}: '{path}'" in error
        assert ("continues once it can write" in error) == advice


def test_what_cannot_be_written_lies_in_the_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("a/out")
    assert cannot_write(OSError(*DENIED, "a/out/x"), out)
    assert cannot_write(OSError(*DENIED, str(tmp_path / "a")), out)  # where it would be made
    assert not cannot_write(OSError(*DENIED, "a/in"), out)
    assert not cannot_write(OSError(errno.EIO, os.strerror(errno.EIO)), out)  # no path is named
    assert cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), out)  # nor is here
    assert cannot_write(OSError(f"{out} cannot be written to: {DENIED[1]}"), out)
    assert cannot_write(OSError(f"cannot be written to: {TOO_LARGE}"), out)
    assert not cannot_write(ValueError("a/out is wrong"), out)


def test_a_shard_of_records_that_fail_is_not_a_full_disk(tmp_path: Path) -> None:
    def records() -> Iterator[bytes]:
        yield b"x"
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        write_shard(tmp_path / "a", records())
    with pytest.raises(OSError, match="cannot be written to"):
        write_shard(tmp_path / "gone" / "a", [b"x"])
    assert list(tmp_path.iterdir()) == []


def of_torch() -> Exception:
    """As torch raises it: what it writes to the file comes first."""
    error = RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 640 vs 534")
    error.__context__ = OSError(errno.EFBIG, TOO_LARGE)
    return error


class OfSafetensors(Exception):
    """safetensors' own kind, of no other."""


@pytest.mark.parametrize(
    "error",
    [
        of_torch(),
        OfSafetensors(f"Error while serializing: I/O error: {TOO_LARGE} (os error 27)"),
        OSError(errno.EFBIG, TOO_LARGE),
    ],
)
def test_export_says_what_libraries_say_otherwise(tmp_path, monkeypatch, capsys, error) -> None:
    def write(self, loaded, folder: Path, *, dtype) -> None:
        (folder / "config.json").touch()
        raise error

    monkeypatch.setattr(Official, "write", write)
    monkeypatch.setattr(export, "_load", lambda options: tiny_model())
    out = tmp_path / "new" / "out"
    assert export.main(["--checkpoint=run", "--to=official", f"--out={out}"]) == 1
    assert TOO_LARGE in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


@pytest.mark.torch
def test_export_to_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch, capfd) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(export, "_load", lambda options: tiny_model())
    out = tmp_path / "new" / "out"
    command = ["--checkpoint=run", "--to=official", f"--out={out}"]
    with largest_file(8_000):
        assert export.main(command) == 1
    error = capfd.readouterr().err
    assert TOO_LARGE in error
    assert error.count("\n") < 4, error
    assert list(out.parent.iterdir()) == []


def test_predict_says_it_and_keeps_what_was_there(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "load", lambda path, **_: toy_model())
    Image.fromarray(columns("red", "blue")).save("a.png")
    options = "a.png", "--checkpoint=run", "--labels=red,blue", "--overwrite"
    for output in ("--csv=a.csv", "--json=a.json", "--out=cards"):
        assert predict.main([*options, output]) == 0
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with largest_file(40):
            assert predict.main([*options, output]) == 1
        assert TOO_LARGE in capsys.readouterr().err
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_evaluate_says_it(tmp_path: Path, capsys) -> None:
    console = evaluate.Console(stderr=True)
    options = evaluate.Options(checkpoint=tmp_path, output=tmp_path / "a.json")
    with largest_file(100):
        status = evaluate_files.finish(
            options, {"results": "x" * 200}, Answers(None, None), None, console, console, data=None
        )
    assert status == ExitStatus.STOPPED
    assert TOO_LARGE in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_answers_without_room_give_way_to_results(tmp_path: Path) -> None:
    """They are found too large as they are written, or in the end, and no second error comes."""
    results = tmp_path / "a.json"
    for count in (1, 1000):
        with largest_file(400), keeping_answers(None, results) as answers:
            with answers.lines() as lines:
                assert lines is not None
                for number in range(count):
                    lines.write(task="zero_shot", image=os.urandom(200).hex(), label=str(number))
            assert (answers.failure is None) == (count == 1)
            write_whole(results, "x" * 390)
            assert answers.keep(results, replaced=True) == (beside(results) if count == 1 else None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_results_replace_the_target_of_a_link_and_no_device(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old", encoding="utf-8")
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe.jsonl")
    write_results({"results": {}}, tmp_path / "link.json", overwrite=True)
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text(encoding="utf-8")) == {"results": {}}
    reader = os.open(tmp_path / "pipe.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    with PredictionsFile(tmp_path / "pipe.jsonl") as file:
        file.write(correct=1.0)
    assert os.read(reader, 100) == b'{"correct": 1.0}\n'
    os.close(reader)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("num_lines", [2, 5_000])  # that fail at the end, and in between
def test_a_full_disk_keeps_all_but_the_predictions(tmp_path: Path, num_lines: int) -> None:
    (tmp_path / "a.csv").write_text("old", encoding="utf-8")
    with largest_file(100), PredictionsFile(tmp_path / "a.csv") as file:
        for _ in range(num_lines):
            file.write(task="zero_shot", text="x" * 100)
    assert TOO_LARGE in str(file.failure)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["old"]


# In a process of its own: what the failed writes leave behind is freed at a time nobody knows.
SAVE_TO_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from grain_jax import runtime
from grain_jax.training.checkpoint import Checkpoints, SaveFailed
from tiny_run import TinyRun, tiny_config

runtime.quiet_libraries()
config = tiny_config()
state = TinyRun(config).state
checkpoints = Checkpoints(Path(sys.argv[1]), config.checkpoint, metadata={"a": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(state, step=1)
    checkpoints.wait()
except SaveFailed as error:
    print(error)
checkpoints.close()
"""


def test_a_checkpoint_that_fails_is_one_sentence(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SAVE_TO_A_FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert TOO_LARGE in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


def test_what_a_disk_refuses_is_told_from_other_errors() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y")
    assert disk_trouble(full) == "[Errno 28] No space left on device: '/x/y'"
    behind = RuntimeError("unexpected pos 640 vs 534")
    behind.__context__ = full
    assert disk_trouble(behind) == "[Errno 28] No space left on device: '/x/y'"
    assert disk_trouble(RuntimeError("I/O error: Disk quota exceeded (os error 122)"))
    assert disk_trouble(RuntimeError("shapes differ")) is None
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"

    def interrupted() -> None:
        with whole_folder(out) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list((tmp_path / "a").iterdir()) == []
    with whole_folder(out) as folder:
        (folder / "x").touch()
        assert is_partial(folder)
        assert not out.exists()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    number = mounted.stat().st_ino
    with whole_folder(mounted) as folder:
        (folder / "x").touch()
    assert [path.name for path in mounted.iterdir()] == ["x"]
    assert mounted.stat().st_ino == number


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", json.dumps({"a": 1}))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8") == '{"a": 1}'
    write_whole(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
