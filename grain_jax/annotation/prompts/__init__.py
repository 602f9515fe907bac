"""The questions that `describe` asks, in versioned files: `grain_v1.toml` is the default."""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from grain_jax.data.text_files import read_text_file

DEFAULT = "grain_v1"
MAX_BYTES = 100_000


@dataclass(frozen=True)
class Prompts:
    """The two questions of a conversation. "{subject}" and "{max_phrases}" are filled in."""

    name: str
    system: str
    subject: str
    features: str

    @property
    def hash(self) -> str:
        """SHA-256 of all of the texts."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def ask_features(self, subject: str, max_phrases: int) -> str:
        """The second question, after `subject` was the answer to the first."""
        text = self.features.replace("{max_phrases}", str(max_phrases))
        return text.replace("{subject}", subject)


def read_prompts(path: Path | None) -> Prompts:
    """The prompts of a TOML file, or the default ones. Raises ValueError for another file."""
    if path is None:
        return _parsed(
            files(__package__).joinpath(f"{DEFAULT}.toml").read_text(encoding="utf-8"), DEFAULT
        )
    return _parsed(read_text_file(path, max_bytes=MAX_BYTES), str(path))


def _parsed(text: str, name: str) -> Prompts:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name!r} is not a file of prompts in TOML: {error}.") from None
    expected = {"name", "system", "subject", "features"}
    if set(content) != expected or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(
            f"{name!r} has {', '.join(sorted(content)) or 'nothing'}; expected the texts "
            f"{', '.join(sorted(expected))}."
        )
    if "{subject}" not in content["features"]:
        raise ValueError(f"'features' of {name!r} does not say where the {{subject}} goes.")
    return Prompts(**{key: value.strip() for key, value in content.items()})
