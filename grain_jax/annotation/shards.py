"""Which images a process annotates where several share them."""

import hashlib
import re
from dataclasses import dataclass

MAX_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`. An image belongs to one by its path alone, whoever lists it."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MAX_SHARDS:
            raise ValueError(
                f"shard {self.index}/{self.count} does not exist; of n shards they are 0/n to "
                f"n-1/n, n at most {MAX_SHARDS}"
            )

    @property
    def name(self) -> str:
        """The part of file names that stands for it."""
        return f"{self.index}-of-{self.count}"

    def __contains__(self, image: str) -> bool:
        digest = hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "little") % self.count == self.index


WHOLE = Shard(0, 1)


def read_shard(text: str) -> Shard:
    """The shard written as "i/n". Raises ValueError."""
    if not (match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)):
        raise ValueError(f"{text!r} should be i/n, as in 0/4, 1/4, 2/4 and 3/4")
    return Shard(int(match[1]), int(match[2]))
