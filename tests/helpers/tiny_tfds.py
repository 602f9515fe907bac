"""Small data sets of TFDS, built by the library itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds


def build(folder: Path, features: dict[str, Any], examples: dict[str, list[dict]]) -> Path:
    """Writes a data set in ArrayRecord files; returns the folder of its version."""

    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            """A data set of a few examples."""

            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = folder

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {name: self._generate_examples(rows) for name, rows in examples.items()}

            def _generate_examples(self, rows: list[dict]) -> Iterator[tuple[int, dict]]:
                yield from enumerate(rows)

    folder.mkdir(parents=True, exist_ok=True)
    builder = Tiny(data_dir=str(folder), file_format="array_record")
    builder.info.set_file_format("array_record", override=True)
    builder.download_and_prepare()
    return Path(builder.data_dir)
