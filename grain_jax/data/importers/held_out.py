"""Which images `prepare --holdout` sets aside: a fraction, by a hash of their paths.

The choice stays the same when images are added, and is the same for every format.
"""

import hashlib

HASH_BITS = 53  # which a float holds exactly


def is_held_out(path: str, fraction: float) -> bool:
    """Whether the image at this path, relative to the folder, is in the fraction set aside."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - HASH_BITS) < fraction * 2**HASH_BITS


def part_of(paths: list[str], fraction: float | None, *, held_out: bool) -> list[int]:
    """Places of the images that are set aside, or of the others; of all without a fraction.

    Raises ValueError where there is none.
    """
    places = [
        place
        for place, path in enumerate(paths)
        if fraction is None or is_held_out(path, fraction) == held_out
    ]
    if paths and not places:
        part = "set aside" if held_out else "left"
        raise ValueError(
            f"--holdout={fraction} of {len(paths)} images: none is {part}. Give another fraction."
        )
    return places
