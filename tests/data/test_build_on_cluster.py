"""Shards built on a Ray cluster of two machines, one of whose workers is killed."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import REPOSITORY
from ray_machines import ray_machines, worker_pids

pytest.importorskip("ray")

from grain_jax import prepare
from grain_jax.data import build_dataset
from grain_jax.data.build_dataset import build_split, report_path
from grain_jax.data.build_on_cluster import build_on_cluster
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.tfds_records import RecordSource

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
COUNT = 60


@pytest.fixture(scope="module")
def address():
    with ray_machines(1, 1) as given:
        yield given


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """60 class folders of one image each, large enough that shrinking them takes a while."""
    folder = tmp_path_factory.mktemp("collection")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), np.uint8)
        (folder / f"{number:02d}").mkdir()
        image = Image.fromarray(pixels).resize((1200, 900))
        image.save(folder / f"{number:02d}" / "one.jpg", quality=60)
    (folder / "07" / "broken.jpg").write_bytes(b"nothing")
    return folder


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 10)


def spec(collection: Path, out: Path, **changes) -> DatasetBuildSpec:
    given = {"format": "imagefolder", "input": collection, "images": None, "out": out}
    return DatasetBuildSpec(**{**given, "max_image_side": 64, **changes})


def check_same(one: Path, other: Path) -> None:
    """The same records in the same order in the same shards, and metadata with the same bytes."""
    a, b = RecordSource(one, "train"), RecordSource(other, "train")
    assert [a[i] for i in range(len(a))] == [b[i] for i in range(len(b))]
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if ".array_record" not in name:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_cluster_changes_nothing(collection, address, tmp_path):
    figures = build_split(spec(collection, tmp_path / "one"), workers=1)
    assert figures.images == COUNT
    assert figures.dropped_images.total() == 1
    on_two = functools.partial(build_on_cluster, address, None)
    assert build_split(spec(collection, tmp_path / "ray"), runner=on_two) == figures
    one_by_one = functools.partial(build_on_cluster, address, 1)
    assert build_split(spec(collection, tmp_path / "ray1"), runner=one_by_one) == figures
    build_split(spec(collection, tmp_path / "processes"), workers=2)
    for other in ("ray", "ray1", "processes"):
        check_same(tmp_path / "one", tmp_path / other)


def test_a_killed_worker_changes_nothing(collection, address, tmp_path):
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for pid in worker_pids("_build"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    runner = functools.partial(build_on_cluster, address, None)
    build_split(spec(collection, tmp_path / "ray"), runner=runner)
    killer.join()
    assert len(killed) == 1
    build_split(spec(collection, tmp_path / "one"), workers=1)
    check_same(tmp_path / "one", tmp_path / "ray")


KILLED = """
import functools, os, signal, sys
from pathlib import Path
from grain_jax.data import build_dataset
from grain_jax.data.build_on_cluster import build_on_cluster
build_dataset.MIN_SHARD = 10
def die(state):
    if state.entries >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
spec = build_dataset.DatasetBuildSpec(
    "imagefolder", Path(sys.argv[1]), None, Path(sys.argv[2]), max_image_side=64
)
runner = functools.partial(build_on_cluster, sys.argv[3], 1)
build_dataset.build_split(spec, runner=runner, progress=die)
"""


def test_a_killed_command_continues_with_the_shards_that_are_finished(
    collection, address, tmp_path
):
    command = [sys.executable, "-c", KILLED, str(collection), str(tmp_path / "out"), address]
    killed = subprocess.run(
        command, check=False, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    work = tmp_path / "out" / ".building" / "train"
    finished = {path.stat().st_ino for path in work.glob("[!.]*.array_record")}
    assert 2 <= len(finished) < 7
    runner = functools.partial(build_on_cluster, address, None)
    build_split(spec(collection, tmp_path / "out"), runner=runner)
    assert finished <= {path.stat().st_ino for path in (tmp_path / "out").glob("*.array_record-*")}
    build_split(spec(collection, tmp_path / "one"), workers=1)
    check_same(tmp_path / "one", tmp_path / "out")


def test_a_cluster_of_this_machine_is_started_and_ends(collection, tmp_path):
    out = [f"--output={tmp_path / 'out'}", "--max_image_side=64", "--ray=auto"]
    command = [sys.executable, "-m", "grain_jax.prepare", "--from=imagefolder", *out]
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, as paths of sockets must be
    try:
        subprocess.run(
            [*command, f"--input={collection}"],
            check=True,
            capture_output=True,
            timeout=180,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": folder},
        )
        assert list(Path(folder).glob("ray/session_*/logs"))
        assert processes_that_name(folder) == []
    finally:
        shutil.rmtree(folder)
    assert len(RecordSource(tmp_path / "out", "train")) == COUNT


def processes_that_name(text: str) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [line for line in [path.read_bytes()] if text.encode() in line]
    return found


def test_the_command_names_a_bad_record_as_without_the_cluster(
    address, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # relative paths mean the same for the workers
    Image.new("RGB", (20, 10)).save("a.png")
    lines = ['{"image": "a.png", "captions": ["one"]}'] * 12
    Path("train.jsonl").write_text("\n".join([*lines, "{", ""]))
    command = ["--from=jsonl", "--input=train.jsonl", "--images=.", "--output=out"]
    assert prepare.main([*command, f"--ray={address}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "train.jsonl:13" in error
    assert "Traceback" not in error
    assert not report_path(Path("out"), "train").exists()
    assert prepare.main([*command, f"--ray={address}", "--on-error=skip"]) == 0
    assert len(RecordSource("out", "train")) == 12
