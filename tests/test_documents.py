"""`.ci/readme.py`, which runs the blocks of documents, and what documents tell it."""

import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

DOCUMENT = """
# A page

<!-- CI sets: FOLDER=$PWD/made WORD="two words" -->
<!-- CI runs first: mkdir made
set -- given -->
<!-- CI adds: added "$1" -->
```bash
echo printed > made/first
echo "$WORD" > "$FOLDER/second"; echo
```

<!-- an ordinary comment: nothing to do with blocks -->

<!-- not run by CI: it would fail -->
```bash
exit 3
```

```python
import os, pathlib
pathlib.Path("made/third").write_text(os.environ["WORD"])
```
"""


@pytest.fixture
def run(tmp_path):
    """Runs a document in an empty folder; (status, output, that folder)."""
    work = tmp_path / "work"
    work.mkdir()

    def run_document(text: str) -> tuple[int, str, Path]:
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        command = [sys.executable, REPOSITORY / ".ci" / "readme.py", page, f"--work={work}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr, work

    return run_document


def test_blocks_run_as_printed_with_what_ci_adds_said(run):
    status, output, work = run(DOCUMENT)
    assert status == 0, output
    assert (work / "made" / "first").read_text() == "printed\n"
    assert (work / "made" / "second").read_text() == "two words\n"
    assert (work / "made" / "third").read_text() == "two words"
    assert "\nadded given\n" in output  # what the last command of the block printed
    for said in ("CI adds: added", "CI runs first: mkdir made", "not run (it would fail)"):
        assert said in output


def test_the_first_block_that_fails_ends_it(run):
    status, output, work = run("```bash\nfalse\ntouch after\n```\n\n```bash\ntouch later\n```\n")
    assert status == 1, output
    assert not (work / "after").exists()
    assert not (work / "later").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no block\n", "no bash or python block"),
        ("<!-- CI add: x -->\n```bash\ntrue\n```\n", "expected one of"),
        ("<!-- CI adds: x -->\n```python\npass\n```\n", "is for bash blocks"),
        ("<!-- CI adds: x -->\ntext\n```bash\ntrue\n```\n", "not right before"),
        ("<!-- CI adds: x -->\n<!-- CI adds: y -->\n```bash\ntrue\n```\n", "twice"),
    ],
)
def test_a_comment_that_nothing_would_obey_is_refused(run, text, message):
    status, output, _ = run(text)
    assert status == 1
    assert message in output
