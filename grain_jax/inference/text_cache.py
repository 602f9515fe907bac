"""Embeddings of texts, kept from one call to the next."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from grain_jax.zero_shot.method import ClassBanks
from grain_jax.zero_shot.scorers import ClassTexts

MAX_CACHED_TEXTS = 100_000  # embeddings kept for the next call
MAX_CACHED_CLASSES = 8  # sets of classes kept, with the embeddings of all their texts


class RowCache:
    """Arrays by key. Once it is full, those of the earliest calls make room."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, np.ndarray] = {}

    def get(
        self,
        keys: Sequence[Hashable],
        make: Callable[[Sequence[Hashable]], Iterable[np.ndarray]],
        *,
        limit: int,
    ) -> list[np.ndarray]:
        """The array of each key; `make` is asked once for those that were not kept, each once."""
        used = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in used]
        if missing:
            made = zip(missing, make(missing), strict=True)
            used |= {key: row.copy() for key, row in made}
            self._keep(used, limit)
        return [used[key] for key in keys]

    def _keep(self, used: dict[Hashable, np.ndarray], limit: int) -> None:
        """Keeps what a call used before anything of earlier calls, as far as there is room."""
        room = max(0, limit - len(used))
        earlier = [key for key in self._kept if key not in used]
        for key in earlier[: max(0, len(earlier) - room)]:
            del self._kept[key]
        for key in list(used)[:limit]:
            self._kept[key] = used[key]


class TextCache:
    """Embeddings of single texts."""

    def __init__(self, encode: Callable[[Sequence[str], str], Float[np.ndarray, "T E"]]):
        """`encode` embeds different texts of a kind."""
        self._encode, self._rows = encode, RowCache()

    def embed(self, texts: Sequence[str], *, kind: str) -> Float[np.ndarray, "T E"]:
        """Those of the texts; only what was not kept is encoded."""

        def make(missing: Sequence[Hashable]) -> Iterable[np.ndarray]:
            return self._encode([text_of[key] for key in missing], kind)

        keys = [(kind, text) for text in texts]
        text_of: dict[Hashable, str] = dict(zip(keys, texts, strict=True))
        return np.stack(self._rows.get(keys, make, limit=MAX_CACHED_TEXTS))


class ClassCache:
    """Texts of sets of classes with their encoded banks, which also keep the class vectors."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[ClassTexts, ClassBanks]] = OrderedDict()

    def get(
        self, key: Hashable, make: Callable[[], tuple[ClassTexts, ClassBanks]]
    ) -> tuple[ClassTexts, ClassBanks]:
        """What was made for this key, or is made now; the sets that were used last are kept."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_CACHED_CLASSES
            or sum(banks.num_texts for _, banks in self._kept.values()) > MAX_CACHED_TEXTS
        ):
            self._kept.popitem(last=False)
        return self._kept[key]
