"""Worker processes that do not outlive a parent which was killed and could not end them."""

import multiprocessing
import os
import threading
import time

_SECONDS_TO_STOP = 20  # of a worker that was told to


def end_with_parent() -> None:
    """Called in a fresh worker process: from now on it ends when its parent does."""
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # A loader process of grain, told to stop, unlinks the shared memory of the batches that nobody
    # took; without that it would stay until the machine restarts.
    stop = vars(multiprocessing.current_process()).get("_kwargs", {}).get("should_stop")
    if stop is not None:
        stop.set()
        time.sleep(_SECONDS_TO_STOP)
    os._exit(1)
