"""Rows of annotations: what a stage found out about one image, and their columns in Parquet.

Each stage (`describe`, `ground`) writes one row for every image it was given. A row says where it
comes from, or why there is nothing: an image that failed has a row with an error.
"""

import dataclasses
import datetime
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain_jax
from grain_jax.extras import how_to_install

# Of a stage that decides on rows of others. A row is named as "part-00000001-0-of-1.parquet:12".
_DECIDING = {
    "decisions": "decisions",  # {"fault", "action", "part", "text", "box_xyxy"}
    "judged_describe": "text",  # the rows that it is about, which counted then
    "judged_ground": "text",
}
# Outputs of each stage and their kinds. A column that is added here is None in older files.
STAGES: dict[str, dict[str, str]] = {
    "describe": {
        "captions": "texts",
        "primary_subject": "text",
        "descriptions": "texts",  # short phrases on what can be seen of the subject
        "prompt_tokens": "integer",
        "completion_tokens": "integer",
    },
    "ground": {
        "regions": "regions",  # {"box_xyxy" in [0, 1] of the image, "description", "score"}
        "phrases": "texts",  # what was looked for
        "best_scores": "numbers",  # of each phrase, also of those without a region
        # What the image was looked at with, where no other stage has it:
        "captions": "texts",  # of a file
        "caption_sources": "texts",  # `Caption.source` of each
        "label": "text",  # name of its class
    },
    "audit": {
        **_DECIDING,
        "kept_describe": "text",  # rows that count instead of those judged, as they were better
        "kept_ground": "text",
        "tries": "integer",  # how often the image was described again
    },
    "review": _DECIDING,
}
_COMMON = {
    "image": "text",
    "image_hash": "text",
    "input_hash": "text",
    "error": "text",
    "model": "text",
    "prompt_hash": "text",
    "sampling": "text",
    "software": "text",
    "time": "time",
}


def now() -> datetime.datetime:
    """The time in UTC."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Provenance:
    """How a row was made."""

    model: str  # its name at the endpoint, on the hub, or a folder
    prompt_hash: str = ""  # of the prompts, or of what else is said to the model
    sampling: str = "{}"  # JSON of the settings that change the answer, keys sorted
    software: str = f"grain_jax {grain_jax.__version__}"
    time: datetime.datetime = field(default_factory=now)

    @property
    def settings(self) -> tuple[str, str, str]:
        """What makes two rows of the same input comparable: model, prompts and sampling."""
        return self.model, self.prompt_hash, self.sampling


@dataclass(frozen=True)
class Row:
    """What a stage found out about an image, or why it did not."""

    image: str  # path inside the images folder, with "/"
    image_hash: str | None  # `content_hash` of the file; None where it could not be read
    provenance: Provenance
    outputs: Mapping[str, Any] = field(default_factory=dict)  # the columns of `STAGES`
    error: str | None = None
    input_hash: str | None = None  # of what an earlier stage gave; None where there is none


def content_hash(data: bytes) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def texts_hash(texts: Sequence[str]) -> str:
    """SHA-256 of a list of texts, by which a stage knows that its input has changed."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def sampling_text(settings: Mapping[str, Any]) -> str:
    """Settings as `Provenance.sampling`: the same text for the same settings."""
    return json.dumps(settings, sort_keys=True)


def columns(stage: str) -> dict[str, str]:
    """Names and kinds of all columns of a stage, in the order of the file."""
    return {**_COMMON, **STAGES[stage]}


def schema(stage: str) -> Any:
    """The `pyarrow.Schema` of a stage. Raises ImportError with a remedy without pyarrow."""
    pa = import_pyarrow()
    region = pa.struct(
        [
            ("box_xyxy", pa.list_(pa.float64(), 4)),
            ("description", pa.string()),
            ("score", pa.float64()),
        ]
    )
    decision = pa.struct(
        [
            *((name, pa.string()) for name in ("fault", "action", "part", "text")),
            ("box_xyxy", pa.list_(pa.float64(), 4)),
        ]
    )
    kinds = {
        "decisions": pa.list_(decision),
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
        "integer": pa.int64(),
        "numbers": pa.list_(pa.float64()),
        "regions": pa.list_(region),
        "time": pa.timestamp("us", tz="UTC"),
    }
    return pa.schema([(name, kinds[kind]) for name, kind in columns(stage).items()])


def import_pyarrow() -> Any:
    """The module `pyarrow`. Raises ImportError, which says how to install it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f"Annotations are Parquet files, and pyarrow cannot be imported ({error}); "
            f"{how_to_install('annotate')}"
        ) from None
    return pyarrow


def row_values(row: Row) -> dict[str, Any]:
    """The row as one value a column."""
    origin = row.provenance
    return {
        "image": row.image,
        "image_hash": row.image_hash,
        "input_hash": row.input_hash,
        "error": row.error,
        **{each.name: getattr(origin, each.name) for each in dataclasses.fields(origin)},
        **row.outputs,
    }


def row_of(values: Mapping[str, Any]) -> Row:
    """The row with the values of `row_values`."""
    names = [each.name for each in dataclasses.fields(Provenance)]
    return Row(
        image=values["image"],
        image_hash=values["image_hash"],
        provenance=Provenance(**{name: values[name] for name in names}),
        outputs={name: value for name, value in values.items() if name not in _COMMON},
        error=values["error"],
        input_hash=values["input_hash"],
    )


def journal_line(values: Mapping[str, Any]) -> bytes:
    """One line of a journal: a checksum and the values as JSON. Lone surrogates become "?"."""
    text = json.dumps(values, ensure_ascii=False, default=_iso_time)
    data = text.encode("utf-8", "replace")
    return b"%08x %s\n" % (zlib.crc32(data), data)


def values_of_line(line: bytes) -> dict[str, Any] | None:
    """The values of a journal's line; None where it is not whole."""
    checksum, space, data = line.partition(b" ")
    if not line.endswith(b"\n") or not space or checksum != b"%08x" % zlib.crc32(data[:-1]):
        return None
    values = json.loads(data)
    return {**values, "time": datetime.datetime.fromisoformat(values["time"])}


def _iso_time(value: Any) -> str:
    if not isinstance(value, datetime.datetime):
        raise TypeError(f"a {type(value).__name__} is not a value of a row: {value!r}")
    return value.isoformat()
