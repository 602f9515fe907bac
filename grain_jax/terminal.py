"""What a command prints reaches any terminal, also one that is not UTF-8."""

import io
import sys


def escape_unprintable() -> None:
    """Letters that the terminal's encoding lacks are printed as escapes, such as \\u732b.

    Without it, one label in Chinese on a terminal of latin-1 (ssh, cron, PYTHONIOENCODING) ends the
    command with a UnicodeEncodeError after all was computed; so does a file name that is not UTF-8
    on any terminal. Call it first in each command. Files are UTF-8 on every terminal.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # rather than None, or what a test put there
            stream.reconfigure(errors="backslashreplace")
