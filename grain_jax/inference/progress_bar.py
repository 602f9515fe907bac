"""How many images are done, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextlib.contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress bar where the error stream is a terminal; yields what moves it."""
    if not shown:
        yield None
        return
    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
