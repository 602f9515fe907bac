"""Run the ```bash and ```python blocks of documents in order, exactly as printed.

A bash block is one shell session, a python block one process. All of them work in one scratch copy
of the checkout, made on the first call, so that a reader's relative paths work, a document may go
on from the one before, and nothing is left behind.

Comments right before a block say what is different in CI, which has no GPU and downloads no models:

    <!-- not run by CI: REASON -->       the block is left out, and the reason printed
    <!-- CI runs first: COMMANDS -->     of the same session, before the block
    <!-- CI adds: ARGUMENTS -->          to the last command of the block
    <!-- CI sets: NAME=VALUE ... -->     in the environment of this and all later blocks of the
                                         document; "$PWD" in a value is the scratch copy

Each is printed with the block. A comment that begins like them and belongs to no block is an error.
"""

import argparse
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = ("not run by CI", "CI runs first", "CI adds", "CI sets")
COMMENT = re.compile(r"<!--\s*((?:not run by CI|CI)\b[^:]*):\s*(.+?)\s*-->", re.DOTALL)
BLOCK = re.compile(
    r"(?P<comments>(?:<!--(?:(?!-->).)*-->\n+)*)```(?P<language>bash|python)\n(?P<code>.*?)```",
    re.DOTALL,
)
COMMANDS = {
    "bash": ("bash", ".readme-block.sh", "set -euo pipefail\n"),
    "python": ("python", ".readme-block.py", ""),
}


@dataclass(frozen=True)
class Block:
    """A block of a document with what the comments before it say."""

    language: str
    code: str
    comments: dict[str, str] = field(default_factory=dict)  # one of `KINDS` -> what follows it

    @property
    def script(self) -> str:
        """What is run."""
        code = self.code
        if first := self.comments.get("CI runs first"):
            code = f"{first}\n{code}"
        if added := self.comments.get("CI adds"):
            code = f"{code.rstrip()} {added}\n"
        return COMMANDS[self.language][2] + code

    def environment(self, work: pathlib.Path) -> dict[str, str]:
        """The variables that CI sets from this block on."""
        given = shlex.split(self.comments.get("CI sets", "").replace("$PWD", str(work.resolve())))
        return dict(variable.split("=", 1) for variable in given)


def main() -> int:
    """Exit status of the first command that fails, 0 when all pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=pathlib.Path, nargs="+")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    args = parser.parse_args()
    try:
        documents = {path: read_blocks(path) for path in args.documents}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    source = pathlib.Path(__file__).resolve().parents[1]
    if not args.work.exists():
        shutil.copytree(source, args.work, ignore=shutil.ignore_patterns(".git", "runs"))
    for document, found in documents.items():
        environment = dict(os.environ)
        for block in found:
            environment |= block.environment(args.work)
            if status := run(block, document.name, args.work, environment):
                return status
    return 0


def read_blocks(document: pathlib.Path) -> list[Block]:
    """The blocks of a document. Raises ValueError where there is none."""
    try:
        found = list(blocks(document.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{document}: {error}") from error
    if not found:
        raise ValueError(f"{document} has no bash or python block to run.")
    return found


def blocks(text: str) -> Iterator[Block]:
    """The blocks of a document. Raises ValueError for a comment that nothing would obey."""
    obeyed = 0
    for match in BLOCK.finditer(text):
        comments = COMMENT.findall(match["comments"])
        obeyed += len(comments)
        for kind, content in comments:
            if kind not in KINDS:
                raise ValueError(f"<!-- {kind}: ... -->: expected one of {', '.join(KINDS)}.")
            if kind in ("CI runs first", "CI adds") and match["language"] != "bash":
                raise ValueError(f"<!-- {kind}: {content} --> is for bash blocks.")
        if len(dict(comments)) < len(comments):
            raise ValueError(f"A comment stands twice before the same block: {comments}.")
        yield Block(match["language"], match["code"], dict(comments))
    if obeyed < len(COMMENT.findall(text)):
        raise ValueError("A comment for CI is not right before a bash or python block.")


def run(block: Block, name: str, work: pathlib.Path, environment: dict[str, str]) -> int:
    """Exit status of one block, 0 for one that is not run."""
    if reason := block.comments.get("not run by CI"):
        print(f"\n-- not run ({reason}):\n{block.code.rstrip()}", flush=True)
        return 0
    print(f"\n-- {name}:\n{block.code.rstrip()}", flush=True)
    for kind, content in block.comments.items():
        print(f"-- {kind}: {content}", flush=True)
    program, script, _ = COMMANDS[block.language]
    (work / script).write_text(block.script, encoding="utf-8")
    started = time.monotonic()
    status = subprocess.run([program, script], cwd=work, env=environment, check=False).returncode
    print(f"-- {time.monotonic() - started:.0f} s, exit status {status}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
