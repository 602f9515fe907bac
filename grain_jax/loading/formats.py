"""The formats that a model is read from, and written in.

To add one, implement `Format` (`formats/format.py`), or `WritableFormat`, and add it to `FORMATS`.
The dict is here, and not beside the protocol, as a run folder is read with what trains.
"""

from collections.abc import Mapping

from grain_jax.formats.format import Format, WritableFormat
from grain_jax.formats.grain_reference_files import Official
from grain_jax.formats.huggingface import HuggingFace
from grain_jax.formats.pretrained import HuggingFaceClip, OpenClip
from grain_jax.loading.run import Run

RUN, OFFICIAL = Run(), Official()
# A path is read by the first that recognises it.
FORMATS: Mapping[str, Format] = {
    "run": RUN,
    "official": OFFICIAL,
    "huggingface": HuggingFace(),
    "huggingface_clip": HuggingFaceClip(),
    "open_clip": OpenClip(),
}


def writable_formats() -> dict[str, WritableFormat]:
    """The formats that models are also written in, by the name that `export --to` takes."""
    return {name: each for name, each in FORMATS.items() if isinstance(each, WritableFormat)}
