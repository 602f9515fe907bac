"""Run the ```bash and ```python blocks of documents in order, exactly as printed.

A bash block is one shell session, a python block one process. A block that CI cannot run is
preceded by `<!-- not run by CI: REASON -->`; its reason is printed. All of them work in one scratch
copy of the checkout, made on the first call, so that a reader's relative paths work, a document may
go on from the one before, and nothing is left behind.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

BLOCK = re.compile(
    r"(?:<!-- not run by CI: (?P<reason>.+?) -->\n+)?"
    r"```(?P<language>bash|python)\n(?P<code>.*?)```",
    re.DOTALL,
)
COMMANDS = {
    "bash": ("bash", ".readme-block.sh", "set -euo pipefail\n"),
    "python": ("python", ".readme-block.py", ""),
}


def main() -> int:
    """Exit status of the first command that fails, 0 when all pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=pathlib.Path, nargs="+")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    args = parser.parse_args()
    source = pathlib.Path(__file__).resolve().parents[1]
    if not args.work.exists():
        shutil.copytree(source, args.work, ignore=shutil.ignore_patterns(".git", "runs"))
    for document in args.documents:
        blocks = list(BLOCK.finditer(document.read_text()))
        if not blocks:
            print(f"{document} has no bash or python block to run.", file=sys.stderr)
            return 1
        for block in blocks:
            if status := run(block, document.name, args.work):
                return status
    return 0


def run(block: re.Match[str], name: str, work: pathlib.Path) -> int:
    """Exit status of one block, 0 for one that is not run."""
    code = block["code"]
    if block["reason"]:
        print(f"\n-- not run ({block['reason']}):\n{code.rstrip()}", flush=True)
        return 0
    print(f"\n-- {name}:\n{code.rstrip()}", flush=True)
    program, script, first = COMMANDS[block["language"]]
    (work / script).write_text(first + code)
    started = time.monotonic()
    status = subprocess.run([program, script], cwd=work, check=False).returncode
    print(f"-- {time.monotonic() - started:.0f} s, exit status {status}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
