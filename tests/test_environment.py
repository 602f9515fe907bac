"""The process around a run: huge pages by one restart."""

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


def test_nothing_starts_again_where_there_are_no_huge_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("", ""))
    environment.restart_with_huge_pages()
