"""What a command prints reaches any terminal, not UTF-8 too, and it may be gone."""

import contextlib
import errno
import io
import os
import select
import shutil
import sys
from collections.abc import Iterator

from rich.console import Console

PIPE_WIDTH = 120  # columns of what is printed where there is no terminal


def consoles(*, quiet: bool = False) -> tuple[Console, Console]:
    """Of messages, `quiet` where another process speaks, and of results, as wide as the terminal;
    without one as COLUMNS says, else `PIPE_WIDTH`.
    """
    output = Console()
    if not output.is_terminal:
        output.width = shutil.get_terminal_size((PIPE_WIDTH, 0)).columns
    return Console(stderr=True, quiet=quiet), output


def escape_unprintable() -> None:
    """Letters that the terminal's encoding lacks are printed as escapes, such as \\u732b.

    Without it, one label in Chinese on a terminal of latin-1 (ssh, cron, PYTHONIOENCODING) ends the
    command with a UnicodeEncodeError after all was computed; so does a file name that is not UTF-8
    on any terminal. Call it first in each command. Files are UTF-8 on every terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # rather than None, or what a test put there
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def may_be_gone() -> Iterator[None]:
    """Within it, what is printed is dropped where its terminal was closed or its reader has left.

    So is all that the process prints from there on: stdout, or stderr, becomes `os.devnull`. Else
    the next line would end a run that ought to save, and so would the end of Python.
    """
    try:
        yield
    except (OSError, SystemExit) as error:
        # `rich` leaves with status 1 where its reader has left.
        lost = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(lost, OSError) or lost.errno not in (errno.EIO, errno.EPIPE):
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # None, or no file
                if _is_gone(stream.fileno()):
                    nobody = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nobody, stream.fileno())
                    os.close(nobody)


def _is_gone(file: int) -> bool:
    """Whether nobody can read what is written there any more."""
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
