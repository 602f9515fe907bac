"""Images that a method looks at and that are tested too: it would be given their answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from grain_jax.data.classification.folders import ImageFiles
from grain_jax.data.image_digest import image_digest
from grain_jax.data.records import Record, ZeroShotSet


def image_sha256(record: Record) -> str:
    """Of its image, as `image_digest` has it."""
    return image_digest(record.image).hex()


@dataclass(frozen=True)
class Wording:
    """What messages call what is tested, what is given beside it, and settings of either."""

    data: str = "--data"
    support: str = "--support"
    bank: str = "--bank"
    setting: str = "--"  # in front of the name of a setting


BY_OPTIONS = Wording()
IN_SUITE = Wording("the set", "its support", "its bank", "")


@dataclass(frozen=True)
class HashedImages:
    """What tells whether an image is one of these."""

    ids: tuple[str, ...]
    digests: tuple[str, ...]  # of each, its SHA-256
    sizes: frozenset[int]  # of those that are encoded, in bytes

    @classmethod
    def of(cls, records: Iterable[Record]) -> "HashedImages":
        """Reads every record."""
        ids, digests, sizes = [], [], set()
        for record in records:
            ids.append(record.id)
            digests.append(image_sha256(record))
            if isinstance(record.image, bytes):
                sizes.add(len(record.image))
        return cls(tuple(ids), tuple(digests), frozenset(sizes))


def refuse_shared(
    images: HashedImages, dataset: ZeroShotSet, *, where: str, data: str = BY_OPTIONS.data
) -> None:
    """Raises ValueError where an image of the set has the bytes of one of these. Files of other
    sizes are not read. `where` says in the error what they are, `data` what the set is called.
    """
    known = dict(zip(images.digests, images.ids, strict=True))
    source, shared = dataset.source, []
    for index in range(len(source)):
        if isinstance(source, ImageFiles):
            path = source.root / source.files[index]
            if path.exists() and path.stat().st_size not in images.sizes:
                continue
        record = source[index]
        if (digest := image_sha256(record)) in known:
            shared.append((known[digest], record.id))
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(source)} images of {data} are among the {where}, byte for "
            f"byte ({shared[0][1]!r}, there {shared[0][0]!r}, first): a method would be given "
            "their answers. Give images that are not tested."
        )
