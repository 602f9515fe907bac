"""Flickr30k Entities as published, where another kind of data was expected."""

from pathlib import Path

FOLDERS = ("Annotations", "Sentences")


def is_entities_folder(folder: Path) -> bool:
    """Whether it holds `Annotations/` and `Sentences/`."""
    return all((folder / name).is_dir() for name in FOLDERS)


def refuse_entities(folder: Path) -> None:
    """Raises ValueError for a folder of Flickr30k Entities, with the commands that take it."""
    if is_entities_folder(folder):
        raise ValueError(
            f"{str(folder)!r} is Flickr30k Entities as published (Annotations/ and Sentences/): "
            "phrases with boxes, no labels of images. Measure grounding on it with `python -m "
            f"grain_jax.evaluate grounding --format=flickr30k_entities --data={folder}`, or make "
            "records of it, for retrieval too, with `python -m grain_jax.prepare "
            f"--from=flickr30k_entities --input={folder}`."
        )
