"""The page of `annotate review`: one file that loads nothing but the images.

All texts are in it as JSON and reach the page as text alone; a policy in its head keeps it from
running anything else than its own script, and from asking the network for anything.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any

from grain_jax.annotation.review.images import ReviewedImage, Source
from grain_jax.data.captions import clean_text

FORMAT, VERSION = "grain_jax review", 1  # of the decisions that the page exports


def review_page(title: str, images: Iterable[ReviewedImage], source: Source) -> str:
    """The HTML of a page on some images.

    Args:
        source: the address of an image on the page.
    """
    values = [_image_values(each, source) for each in images]
    identity = hashlib.sha256("".join(each["rows"] for each in values).encode()).hexdigest()
    data = {"format": FORMAT, "version": VERSION, "id": identity[:16], "images": values}
    script = _part("page.js")
    parts = {
        "title": html.escape(clean_text(title)),
        "policy": html.escape(_policy(script)),
        "style": _part("page.css"),
        "data": script_json(data),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def script_json(value: Any) -> str:
    """JSON for an element `script`, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _image_values(image: ReviewedImage, source: Source) -> dict[str, Any]:
    found = image.annotation
    return {
        "name": found.image,
        "source": source(found.image),
        "rows": image.rows,
        "captions": found.captions,
        "subject": found.primary_subject,
        "regions": [
            (each.description, each.score if math.isfinite(each.score) else 0.0, each.box_xyxy)
            for each in found.regions
        ],
        "unboxed": image.unboxed,
        "verdict": image.verdict,
        "rejected": image.rejected,
    }


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
