"""Benchmarks of grounding with a few tiny images, in the published layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 20


def save_image(path: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path, **options)


def save_halves(path: Path, left: tuple[int, int, int], right: tuple[int, int, int]) -> None:
    """An image whose halves have one colour each."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = left, right
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def entity(names: list[str] | str, *box: int) -> str:
    """An object of an annotation with a box in pixels from 1, both ends in it; none without."""
    names = [names] if isinstance(names, str) else names
    named = "".join(f"<name>{name}</name>" for name in names)
    if not box:
        return f"<object>{named}<scene>1</scene><nobndbox>1</nobndbox></object>"
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in corners)
    return f"<object>{named}<bndbox>{inside}</bndbox></object>"


def write_entities(
    root: Path,
    name: str,
    sentences: list[str],
    entities: list[str],
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> None:
    """Sentences and annotation of one image of Flickr30k Entities, without the image."""
    for folder in ("Sentences", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Sentences" / f"{name}.txt").write_text("\n".join(sentences), encoding="utf-8")
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    body = f"<annotation><filename>{name}.jpg</filename>{sides}{''.join(entities)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(body, encoding="utf-8")


def entities_of_flickr(root: Path) -> Path:
    """Two images, seven mentions, of which five have a box."""
    write_entities(
        root,
        "11",
        [
            "[/EN#1/people A man] with [/EN#2/clothing/other a red hat] in [/EN#3/scene a park] .",
            "[/EN#1/people A man] sees [/EN#0/notvisual him] near [/EN#4/people two girls] .",
        ],
        [
            entity("1", 1, 1, 20, 20),
            entity("2", 5, 1, 10, 4),
            entity("3"),
            entity("4", 21, 1, 30, 20),
            entity(["4", "5"], 31, 1, 40, 20),
        ],
    )
    write_entities(root, "12", ["[/EN#7/animals A dog] runs ."], [entity("7", 11, 1, 40, 20)])
    for name in ("11", "12"):
        save_image(root / "images" / f"{name}.jpg")
    (root / "test.txt").write_text("12\n", encoding="utf-8")
    return root


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def coco_image(image_id: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT} | more


def annotation(
    number: int, image_id: int, category: int, bbox: list[float], **more: Any
) -> dict[str, Any]:
    """`bbox`: x, y, width, height."""
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox} | more
