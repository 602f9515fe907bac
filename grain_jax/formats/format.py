"""The protocol of formats: a model as others store it.

The formats there are: `FORMATS` in `loading/formats.py`. A contract test runs over every entry
(`tests/formats/test_formats.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from grain_jax.formats.parity import Difference, Inputs, Outputs
from grain_jax.models.bundle import ModelBundle


@dataclass(frozen=True)
class TrainingRun:
    """The run that the weights come from."""

    name: str  # of its folder, or of the file that the weights were read from
    num_images: int = 0  # training images; 0 for weights that were not trained by a run
    metrics: str = ""  # Markdown: metrics at the step of the weights


@dataclass(frozen=True)
class Export:
    """A model that was written and compared with the one it was written from."""

    folder: Path  # the files
    name: Path  # what the folder is called once it is complete
    dtype: str  # of the weights
    run: TrainingRun
    differences: Sequence[Difference]


@runtime_checkable
class Format(Protocol):
    """A format that models are read from; its module imports neither torch nor transformers."""

    @property
    def title(self) -> str:
        """What is stored so, as errors name it: "an export"."""
        ...

    @property
    def weights(self) -> Sequence[str]:
        """Names that its weights may have in a folder, the first that exists is read; () for none.

        Of a repository on the hub, only this file is downloaded.
        """
        ...

    def recognises(self, path: Path) -> bool:
        """Whether the file or folder is in this format, by names and settings, not by weights.

        Raises ValueError where the settings that decide on it cannot be read.
        """
        ...

    def read(self, path: Path) -> ModelBundle:
        """The model, its parameters in float32. Raises ValueError that names a file at fault."""
        ...


@runtime_checkable
class WritableFormat(Format, Protocol):
    """A format that models are also written in, which makes it a choice of `export --to`."""

    @property
    def dtypes(self) -> Sequence[str]:
        """Types that weights can be written in."""
        ...

    def write(self, loaded: ModelBundle, folder: Path, *, dtype: str = "float32") -> None:
        """Writes the files; `read(folder)` gives the same model.

        Raises ValueError for a model that the format cannot hold.
        """
        ...

    def outputs(self, folder: Path, *, dtype: str) -> Callable[[Inputs], Outputs] | None:
        """Outputs, named as in `parity.jax_outputs`, of what was written, in `dtype`.

        They are those of the code that others read the files with; None where nobody else does.
        """
        ...

    def finish(self, loaded: ModelBundle, export: Export) -> Sequence[str]:
        """Adds what says how exact the copy is; returns notes for the person who exports."""
        ...
