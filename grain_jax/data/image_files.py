"""Bytes of image files, bounded in size, and how a skipped image is named and counted."""

from pathlib import Path

MAX_IMAGE_BYTES = 64 * 2**20
MISSING_FILE = "missing file"  # the reason of a `SkippedSample` without a file that can be read


class SkippedSample(ValueError):
    """An image that is skipped; `reason` is the line of the report that counts it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_image_bytes(path: Path, *, name: str, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, called `name` in errors, or its `size` bytes from `offset`.

    Raises `SkippedSample` where it is missing, larger than `MAX_IMAGE_BYTES`, or ends before.
    """
    too_large = f"{name!r} is larger than {MAX_IMAGE_BYTES} bytes."
    if size is not None and size > MAX_IMAGE_BYTES:
        raise SkippedSample("file too large", too_large)
    try:
        with path.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(MAX_IMAGE_BYTES + 1 if size is None else size)
    except (OSError, ValueError) as error:  # ValueError: not a file name, for example one with NUL
        raise SkippedSample(MISSING_FILE, f"{name!r}: {error}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise SkippedSample("file too large", too_large)
    if size is not None and len(data) < size:
        raise SkippedSample("truncated file", f"{name!r}: the file ends within this image.")
    return data
