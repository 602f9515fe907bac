"""Pickles of plain values only: unpickling anything else can run code that the file names."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

MAX_BYTES = 2**30


class _PlainUnpickler(pickle._Unpickler):
    """The Python version of the library: the one in C makes room for as many objects as a file
    says that it has.
    """

    # Without bytearrays, for which room is made before they are read.
    dispatch: ClassVar[dict[int, Callable[[pickle.Unpickler], None]]] = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, whose code would run")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_plain_pickle(path: Path) -> Any:
    """The dicts, lists, tuples, texts, numbers, booleans and None in a pickle, of Python 2 too.

    Raises ValueError, without running anything, for a pickle of anything else, and for a file that
    is damaged or larger than `MAX_BYTES`.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes.")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except Exception as error:  # a damaged pickle raises nearly any of them
        raise ValueError(
            f"{path} is not a pickle of plain values that can be read: {error or type(error)}."
        ) from None
