"""Download a model of the Hugging Face hub: its settings, and its weights in one format."""

import functools
from collections.abc import Sequence
from pathlib import Path

from grain_jax.formats.weight_files import INDEX, part_names
from grain_jax.loading.formats import FORMATS, OFFICIAL

SETTINGS = ("*.json", "*.txt", "*.model")


def download(name: str) -> Path:
    """The local folder of a model on the hub, "owner/name" or "owner/name@revision".

    Without a network, the copy of an earlier download. Raises ValueError where there is neither.
    """
    from huggingface_hub import snapshot_download  # here, as no local path has use for it

    repository, _, revision = name.partition("@")
    download = functools.partial(snapshot_download, repository, ignore_patterns=["*/*"])
    try:
        # Settings and tokenizer first, which determine the format of the weights to download.
        settings = download(revision=revision or None, allow_patterns=list(SETTINGS))
        folder = Path(str(settings))
        for file in _weights(folder):
            download(revision=folder.name, allow_patterns=[file])
            if (folder / file).is_file():
                break
            if (index := folder / f"{file}{INDEX}").is_file():  # downloaded with the settings
                download(revision=folder.name, allow_patterns=list(part_names(index)))
                break
    except Exception as error:  # the transport of the hub's client has error types of its own
        raise ValueError(
            f"There is no folder {name}, and the Hugging Face hub did not return it: {error}"
        ) from error
    return folder


def _weights(folder: Path) -> Sequence[str]:
    """Weight files that the model of a folder may have; without settings, those of the official."""
    known = (each.weights for each in FORMATS.values() if each.recognises(folder))
    return next(known, OFFICIAL.weights)
