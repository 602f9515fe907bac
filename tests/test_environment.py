"""The process around a run: huge pages by one restart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grain_jax.training import environment

COMMAND = """
import os, sys
from grain_jax.training import environment
environment._offers_huge_pages = lambda: True
environment.restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


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
    result = subprocess.run(
        [sys.executable, "command.py", "--name=two words"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])}
        | ({} if given is None else {"GLIBC_TUNABLES": given}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == f"{expected} --name=two words\n", result.stderr


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A machine that offers huge pages; the commands that would be started instead of this one."""
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    monkeypatch.setattr(environment, "HUGE_PAGES", setting)
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    return started


def test_the_same_command_starts_where_huge_pages_are_on_request(
    restarts: list[list[str]],
) -> None:
    environment.restart_with_huge_pages()
    assert restarts == [[sys.executable, *sys.orig_argv[1:]]]
    environment.restart_with_huge_pages()  # by now the environment says so
    assert len(restarts) == 1


@pytest.mark.parametrize(
    "reason", ["always", "never", "no file", "old glibc", "no glibc", "debugger", "gpu"]
)
def test_nothing_starts_again_for_a_reason_not_to(
    restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    match reason:
        case "always":
            environment.HUGE_PAGES.write_text("[always] madvise never\n")
        case "never":
            environment.HUGE_PAGES.write_text("always madvise [never]\n")
        case "no file":
            environment.HUGE_PAGES.unlink()
        case "old glibc":
            monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("glibc", "2.34"))
        case "no glibc":
            monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("", ""))
        case "debugger":
            monkeypatch.setattr(sys, "gettrace", lambda: print)
        case "gpu":
            monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    environment.restart_with_huge_pages()
    assert restarts == []


def test_a_failed_restart_goes_on_with_small_pages(
    restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, command: list[str]) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "execv", fail)
    environment.restart_with_huge_pages()
