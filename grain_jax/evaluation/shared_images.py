"""Images that a method looks at and that are tested too: it would be given their answers."""

from collections.abc import Iterable

from grain_jax.data.classification.folders import ImageFiles
from grain_jax.data.image_digest import image_digest
from grain_jax.data.records import Record, ZeroShotSet


def image_sha256(record: Record) -> str:
    """Of its image, as `image_digest` has it."""
    return image_digest(record.image).hex()


def refuse_shared(records: Iterable[Record], dataset: ZeroShotSet, *, where: str) -> list[str]:
    """The SHA-256 of every record's image.

    Raises ValueError where an image of the set has the bytes of one of them. Files of other sizes
    are not read. `where` names the option in the error, with what it holds.
    """
    known: dict[str, str] = {}
    digests, sizes = [], set()
    for record in records:
        digests.append(image_sha256(record))
        known[digests[-1]] = record.id
        if isinstance(record.image, bytes):
            sizes.add(len(record.image))
    source, shared = dataset.source, []
    for index in range(len(source)):
        if isinstance(source, ImageFiles):
            path = source.root / source.files[index]
            if path.exists() and path.stat().st_size not in sizes:
                continue
        record = source[index]
        if (digest := image_sha256(record)) in known:
            shared.append((known[digest], record.id))
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(source)} images of --data are among the {where}, byte for byte "
            f"({shared[0][1]!r}, there {shared[0][0]!r}, first): a method would be given their "
            "answers. Give images that are not tested."
        )
    return digests
