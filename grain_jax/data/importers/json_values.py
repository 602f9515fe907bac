"""Values of JSON as importers check them: objects with each key once, numbers, sizes."""

import json
import math
from typing import Any

from grain_jax.data.importers.item import MAX_SIDE, InvalidRecordError


def shown(value: Any) -> str:
    """A value as messages quote it, at most 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # of a pickle: not JSON, or within itself
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that raises `InvalidRecordError` for a key that is given twice."""
    entry = dict(pairs)
    if len(entry) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRecordError(
            f"{shown(twice)} is given twice; JSON would keep only the last. Remove one."
        )
    return entry


def as_number(value: Any) -> float | None:
    """A number as a float, infinite where it is too large for one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer too large for a float
        return math.inf


def four_numbers(value: Any) -> tuple[float, float, float, float] | None:
    """A list of four numbers; None for anything else. They may be NaN or infinite."""
    numbers = [as_number(v) for v in value] if isinstance(value, list | tuple) else []
    a, b, c, d = numbers if len(numbers) == 4 else (None,) * 4
    return None if a is None or b is None or c is None or d is None else (a, b, c, d)


def image_size(width: Any, height: Any) -> tuple[int, int]:
    """(width, height) in pixels. Raises `InvalidRecordError` for anything but positive integers."""
    for value in (width, height):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
            raise InvalidRecordError(
                f"'width' and 'height' must be positive whole numbers up to {MAX_SIDE}, "
                f"got {shown([width, height])}."
            )
    return width, height


def parse_object(data: bytes, *, expected: str = "an object") -> dict[str, Any]:
    """The JSON object in `data`, with each key once.

    Raises `InvalidRecordError`; `expected` says in it what anything but an object should be.
    """
    try:
        entry = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except InvalidRecordError:
        raise
    except UnicodeDecodeError as error:
        raise InvalidRecordError(
            f"not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise InvalidRecordError(f"not JSON: {error.msg} at column {error.colno}.") from None
    except RecursionError:
        raise InvalidRecordError("not JSON that can be read: nested too deeply.") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise InvalidRecordError(f"not JSON that can be read: {error}.") from None
    if not isinstance(entry, dict):
        raise InvalidRecordError(f"expected {expected}, got {shown(entry)}.")
    return entry
