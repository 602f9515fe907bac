"""The options of every command that keeps embeddings on disk, and what it says of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from grain_jax.command_line import OptionalCount, OptionalText, default_is
from grain_jax.inference.array_store import ArrayStore
from grain_jax.inference.cached_encoder import AUTO, NO_CACHE, NONE, CachedEncoder, open_cache
from grain_jax.inference.encoder import Encoder
from grain_jax.parallel import processes


@dataclass(frozen=True)
class CacheOptions:
    """Where embeddings are kept."""

    # embeddings for the next evaluation: a folder, auto (in the user's cache) or none
    cache: Annotated[OptionalText, arg(metavar="DIR"), default_is("auto")] = None
    # the most that the folder may take; what was not used for longest goes
    cache_gib: Annotated[OptionalCount, default_is("8")] = None


def open_store(options: CacheOptions) -> ArrayStore | None:
    """The store that the options name, None without one; every host of several calls it.

    Raises ValueError for a folder that cannot be written to, and for a size of no cache.
    """
    with processes.errors_in_all():
        if options.cache == NONE and options.cache_gib is not None:
            raise ValueError("--cache_gib is the size of a cache, and --cache=none keeps none.")
        return open_cache(options.cache or AUTO, max_gib=options.cache_gib)


def over_store(
    encoder: Encoder, store: ArrayStore | None, *, note: Callable[[str], None]
) -> Encoder:
    """The encoder, which reads and keeps embeddings where there is a store."""
    return encoder if store is None else CachedEncoder.of(encoder, store, note=note)


def embeddings_line(encoder: Encoder) -> str:
    """The last line that a command prints: how much was read, and how much encoded."""
    return encoder.summary() if isinstance(encoder, CachedEncoder) else NO_CACHE
