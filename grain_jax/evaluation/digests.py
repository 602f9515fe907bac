"""A name for what was given, which nothing else has."""

import hashlib
import json
from typing import Any


def sha256_of(content: Any) -> str:
    """Hexadecimal SHA-256 of what JSON can hold, its keys in order."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
