"""XLA's alarm about a slow compilation, replaced by a line that does not read as a crash.

A large model takes XLA minutes, and after two it logs rows of asterisks around "Very slow compile?
If you want to file a bug, ...". No flag of XLA turns that off but the one that hides every error of
its log. So what C++ code writes to stderr goes through a process of its own, which outlives an
abort of this one and loses nothing. Python's own `sys.stderr` is left as it was.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator

SOURCE = b"slow_operation_alarm.cc"
QUESTION = b"Very slow compile?"
INSTEAD = (
    b"Note: XLA has been compiling for minutes, as it does with large models; the run continues.\n"
)


def hide_alarm() -> None:
    """Sends file descriptor 2 of this process through the filter; call it once, at the start."""
    sys.stderr.flush()
    direct = os.dup(2)
    command = [sys.executable, "-I", "-S", __file__]
    try:
        # A session of its own: Ctrl-C in the terminal must not end it before this process.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=direct, start_new_session=True
        )
    except OSError:  # no more processes: the alarm does no harm
        os.close(direct)
        return
    assert child.stdin is not None
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    child.returncode = 0  # nobody waits for it: it ends when the last writer has
    encoding, errors = sys.stderr.encoding, sys.stderr.errors
    sys.stderr = os.fdopen(direct, "w", buffering=1, encoding=encoding, errors=errors)


def without_alarm(lines: Iterable[bytes]) -> Iterator[bytes]:
    """`lines` without those of the alarm, and once, in its place, what is the matter."""
    noted = in_alarm = False
    for line in lines:
        if SOURCE in line:
            in_alarm = True
        elif not (in_alarm and (not line.strip(b"*\r\n ") or QUESTION in line)):
            in_alarm = False
            yield line
        if in_alarm and not noted:
            noted = True
            yield INSTEAD


if __name__ == "__main__":
    for kept in without_alarm(iter(sys.stdin.buffer.readline, b"")):
        sys.stderr.buffer.write(kept)
        sys.stderr.flush()
