"""A source that says which modules are loaded where it is read. It imports none that train."""

import io
import json
import os
import sys
from pathlib import Path

from PIL import Image

from grain_jax.data.records import Caption, Record


class Telling:
    """Eight gray images; each that is read leaves (process, modules) in the file `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Record:
        self.log.write_text(json.dumps([os.getpid(), sorted(sys.modules)]))
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "PNG")
        return Record(f"image-{index}", out.getvalue(), captions=(Caption("a"),))
