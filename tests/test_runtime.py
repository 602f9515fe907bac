"""The process around a run: huge pages by one restart, and devices that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from places import REPOSITORY

import grain_jax.evaluate
import grain_jax.export
import grain_jax.predict
import grain_jax.train
from grain_jax import runtime

COMMAND = """
import os, platform, sys
from pathlib import Path
from grain_jax import runtime
runtime.HUGE_PAGES = Path("enabled")
platform.libc_ver = lambda: ("glibc", "2.35")
runtime.restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


OFFERED = "always [madvise] never\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings are Linux's")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_command_starts_again_once_with_its_arguments(
    tmp_path: Path, given: str | None, expected: str
) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "enabled").write_text(OFFERED)
    result = subprocess.run(
        [sys.executable, "command.py", "--name=two words"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)} | ({} if given is None else {"GLIBC_TUNABLES": given}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == f"{expected} --name=two words\n", result.stderr


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A machine that offers huge pages; the commands that would be started instead of this one."""
    setting = tmp_path / "enabled"
    setting.write_text(OFFERED)
    monkeypatch.setattr(runtime, "HUGE_PAGES", setting)
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    return started


def test_the_same_command_starts_where_huge_pages_are_on_request(
    restarts: list[list[str]],
) -> None:
    runtime.restart_with_huge_pages()
    assert restarts == [[sys.executable, *sys.orig_argv[1:]]]
    runtime.restart_with_huge_pages()  # by now the environment says so
    assert len(restarts) == 1


@pytest.mark.parametrize(
    "reason", ["always", "never", "no file", "old glibc", "no glibc", "debugger", "gpu"]
)
def test_nothing_starts_again_for_a_reason_not_to(
    restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    match reason:
        case "always":
            runtime.HUGE_PAGES.write_text("[always] madvise never\n")
        case "never":
            runtime.HUGE_PAGES.write_text("always madvise [never]\n")
        case "no file":
            runtime.HUGE_PAGES.unlink()
        case "old glibc":
            monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("glibc", "2.34"))
        case "no glibc":
            monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("", ""))
        case "debugger":
            monkeypatch.setattr(sys, "gettrace", lambda: print)
        case "gpu":
            monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    runtime.restart_with_huge_pages()
    assert restarts == []


def test_a_failed_restart_goes_on_with_small_pages(
    restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, command: list[str]) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "execv", fail)
    runtime.restart_with_huge_pages()


COMMANDS = {
    grain_jax.train: ["--config=demo:smoke"],
    grain_jax.evaluate: ["--checkpoint=RUN"],
    grain_jax.predict: ["a.jpg", "--checkpoint=RUN", "--labels=a,b"],
    grain_jax.export: ["--checkpoint=RUN", "--to=official", "--out=OUT"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("platforms", "visible", "message"),
    [
        ("cuda", None, "[cuda]"),
        ("cuda", "7", "CUDA_VISIBLE_DEVICES='7' leaves only these"),
        ("tpu", None, "Expected a TPU VM"),
        ("cdua", None, "name cpu, cuda or tpu in it"),
    ],
)
def test_every_command_says_that_no_device_is_there(
    command: object,
    platforms: str,
    visible: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def devices() -> None:
        raise AssertionError  # all that JAX says without its plugin for CUDA

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.chdir(tmp_path)
    assert command.main(COMMANDS[command]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith(f"Error: No device was found (JAX_PLATFORMS={platforms}). ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_gpus_that_are_named_and_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for value, noted in (("7", True), ("", False), ("-1", False)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert bool(runtime.missing_gpu_notes()) == noted
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # meant
    assert runtime.missing_gpu_notes() == []


def test_jax_itself_finds_no_gpu_where_none_is_visible(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "grain_jax.train", "--config=demo:smoke"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY)}
        | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    assert "Error: No device was found (JAX_PLATFORMS=cuda)" in result.stderr
    assert "Traceback" not in result.stderr
