"""Run the ```bash blocks of documents in order, exactly as printed, in one folder.

A block that CI cannot run is preceded by `<!-- not run by CI: REASON -->`; its reason is printed.
The shell works in a scratch copy of the checkout, so that a reader's relative paths work and
nothing is left behind.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

BLOCK = re.compile(
    r"(?:<!-- not run by CI: (?P<reason>.+?) -->\n+)?```bash\n(?P<code>.*?)```", re.DOTALL
)


def main() -> int:
    """Exit status of the first command that fails, 0 when all pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=pathlib.Path, nargs="+")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    args = parser.parse_args()
    source = pathlib.Path(__file__).resolve().parents[1]
    shutil.copytree(source, args.work, ignore=shutil.ignore_patterns(".git", "runs"))
    blocks = [(path.name, block) for path in args.documents for block in _blocks(path)]
    script = args.work / ".readme-block.sh"
    for name, block in blocks:
        if block["reason"]:
            print(f"\n-- not run ({block['reason']}):\n{block['code'].rstrip()}", flush=True)
            continue
        print(f"\n-- {name}:\n{block['code'].rstrip()}", flush=True)
        script.write_text("set -euo pipefail\n" + block["code"])
        started = time.monotonic()
        status = subprocess.run(["bash", script.name], cwd=args.work, check=False).returncode
        print(f"-- {time.monotonic() - started:.0f} s, exit status {status}", flush=True)
        if status:
            return status
    return 0


def _blocks(document: pathlib.Path) -> list[re.Match[str]]:
    blocks = list(BLOCK.finditer(document.read_text()))
    if not blocks:
        sys.exit(f"{document} has no bash block to run.")
    return blocks


if __name__ == "__main__":
    sys.exit(main())
