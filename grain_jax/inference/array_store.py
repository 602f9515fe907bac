"""Arrays on disk under keys that say what they were made from; an entry is whole or not there.

An entry is a folder of .npy files with `entry.json`, which has their SHA-256: what was cut off,
changed or put there by others is noticed when it is read, removed, and made again. Several
processes may read and write at once. What was not used for longest makes room for what is new.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from grain_jax.disk import is_partial, sync, whole_folder

ENTRY = "entry.json"
MAX_BYTES = 8 << 30
LEFT_OVER_SECONDS = 24 * 3600  # after which half of an entry is taken for that of a killed process
MAX_READ = 1 << 24  # bytes of an array that is read rather than mapped
KEY = re.compile(r"[\w-]{8,200}")


class ArrayStore:
    """A folder of entries, at most `max_bytes` of them together."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES):
        """Raises OSError where the folder cannot be made or written to."""
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{str(folder)!r} cannot be written to")
        self.folder, self.max_bytes = folder, max_bytes

    def keys(self, prefix: str) -> list[str]:
        """Of the entries whose key begins so, in order."""
        return sorted(
            path.name
            for path in self.folder.glob(f"{prefix}*")
            if KEY.fullmatch(path.name) and (path / ENTRY).is_file()
        )

    def read(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, read-only, large ones memory-mapped; None where there is none, or
        a damaged one, which is removed.
        """
        entry = self._entry(key)
        try:
            arrays = _read(entry)
        except FileNotFoundError:
            if (entry / ENTRY).is_file():
                self._remove(entry)
            return None
        except ValueError:
            self._remove(entry)
            return None
        except OSError:  # not readable now, as with too many open files: no sign of damage
            return None
        with contextlib.suppress(OSError):  # another user's, in a folder of several
            os.utime(entry / ENTRY)  # used now
        return arrays

    def write(self, key: str, arrays: Mapping[str, np.ndarray]) -> bool:
        """Stores an entry, unless there is one or it is larger than all of them may be; returns
        whether there is one now. Raises OSError where the disk refuses.
        """
        entry = self._entry(key)
        if (entry / ENTRY).is_file():
            return True
        if sum(array.nbytes for array in arrays.values()) > self.max_bytes:
            return False
        try:
            with whole_folder(entry) as partial:
                _write(partial, arrays)
        except OSError as error:
            if (entry / ENTRY).is_file():  # another process was faster
                return True
            if isinstance(error, FileExistsError):  # or is about to be
                return False
            raise
        self._make_room(keep=entry)
        return True

    def _entry(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a key of entries: 8 to 200 letters, digits, _ and -.")
        return self.folder / key

    def _make_room(self, *, keep: Path) -> None:
        """Removes what was not used for longest until the rest may stay; never `keep`."""
        used, now = [], time.time()
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # removed meanwhile
                changed = path.stat().st_mtime
                if is_partial(path):
                    if now - changed > LEFT_OVER_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
                elif KEY.fullmatch(path.name):
                    size = sum(file.stat().st_size for file in path.iterdir())
                    used.append(((path / ENTRY).stat().st_mtime, path, size))
        total = sum(size for *_, size in used)
        for _, path, size in sorted(used):
            if total <= self.max_bytes:
                break
            if path != keep:
                self._remove(path)
                total -= size

    def _remove(self, entry: Path) -> None:
        """At once for others, who never find half of it."""
        aside = self.folder / f".{uuid.uuid4().hex}.partial"
        with contextlib.suppress(OSError):
            entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    sums = {}
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            sync(file)
        sums[name] = _sha256(path)
    with (folder / ENTRY).open("w", encoding="utf-8") as file:
        json.dump(sums, file)
        sync(file)


def _read(entry: Path) -> dict[str, np.ndarray]:
    """Raises OSError or ValueError where it is not as it was written."""
    sums = json.loads((entry / ENTRY).read_text(encoding="utf-8"))
    if not isinstance(sums, dict):
        raise ValueError(f"{ENTRY} is not an object.")
    arrays = {}
    for name, expected in sums.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"{name!r} is not the name of an array.")
        path = entry / f"{name}.npy"
        if _sha256(path) != expected:
            raise ValueError(f"{path} has changed.")
        # A mapped file stays open, and a process may have only so many.
        mode: Literal["r"] | None = "r" if path.stat().st_size > MAX_READ else None
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
        arrays[name] = np.asarray(found)  # still mapped, but results of it are plain arrays
        arrays[name].flags.writeable = False
    return arrays


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
