"""Three images in each layout that `prepare` reads, written by hand or by others' libraries."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets
import tiny_tfds
from PIL import Image

SIZE = (40, 20)  # width and height of every image
NAMES = ("a.png", "b.png", "c.png")
CAPTIONS = (("a red bird", "a bird on a branch"), ("a blue bird",), ("a gr\u00fcne bird",))
BOX_XYXY = (10, 5, 30, 20)  # of the second image, in pixels
DESCRIPTION = "a long tail"


@dataclass
class Collection:
    """What `prepare` is given, and what should come of it."""

    input: Path
    change: Callable[[], Any]  # changes what one record says
    spoil: Callable[[], Any] | None  # makes one record unreadable; None: no record can be
    message: str  # what the error about it names, a regular expression
    images: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    captions: tuple[tuple[str, ...], ...] = CAPTIONS
    num_regions: tuple[int, ...] = (0, 1, 0)  # that of the second is `DESCRIPTION` at `BOX_XYXY`
    build: dict[str, Any] = field(default_factory=dict)  # further options of the build
    labels: tuple[str | None, ...] = (None, None, None)


def image_bytes(index: int, kind: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
    """An encoded image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, (60 * index, 0, 200)).save(out, kind)
    return out.getvalue()


def write_images(folder: Path) -> Path:
    """The three images as files."""
    folder.mkdir(parents=True)
    for index, name in enumerate(NAMES):
        (folder / name).write_bytes(image_bytes(index))
    return folder


def replace_in(path: Path, old: str, new: str) -> None:
    """Replaces a text in a file that holds it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def jsonl(folder: Path) -> Collection:
    """One line for each image."""
    lines: list[dict] = [
        {"image": name, "captions": list(texts)}
        for name, texts in zip(NAMES, CAPTIONS, strict=True)
    ]
    lines[1] |= {
        "regions": [{"bbox": list(BOX_XYXY), "description": DESCRIPTION}],
        "bbox_unit": "pixel",
    }
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Collection(
        path,
        images=write_images(folder / "images"),
        change=lambda: replace_in(path, "a blue", "a blew"),
        spoil=lambda: replace_in(path, '"a blue bird"', "3"),
        message=r"in\.jsonl:2: .*captions\[0\]",
    )


def flickr30k_entities(folder: Path) -> Collection:
    """Sentences and annotations of Flickr30k Entities."""
    sentences = folder / "entities" / "Sentences"
    annotations = folder / "entities" / "Annotations"
    images = folder / "images"
    for place in (sentences, annotations, images):
        place.mkdir(parents=True)
    x0, y0, x1, y1 = BOX_XYXY
    for index, name in enumerate("abc"):
        texts = "\n".join(CAPTIONS[index])
        box = ""
        if index == 1:
            texts = f"a blue [/EN#7/animals {DESCRIPTION}]"
            box = (
                f"<object><name>7</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
                f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            )
        (sentences / f"{name}.txt").write_text(texts, encoding="utf-8")
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        (annotations / f"{name}.xml").write_text(f"<annotation>{size}{box}</annotation>")
        (images / f"{name}.jpg").write_bytes(image_bytes(index, "JPEG"))
    return Collection(
        folder / "entities",
        images=images,
        change=lambda: (sentences / "a.txt").rename(sentences / "d.txt"),
        spoil=lambda: replace_in(annotations / "b.xml", "<xmin>", "<xmax>"),
        message=r"b\.xml",
        captions=(CAPTIONS[0], (f"a blue {DESCRIPTION}",), CAPTIONS[2]),
    )


def coco_files(folder: Path, subset: str = "train2017") -> tuple[Path, Path]:
    """captions_<subset>.json and instances_<subset>.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    images: list[dict] = [
        {"id": 100 + index, "file_name": name, "width": width, "height": height}
        for index, name in enumerate(NAMES)
    ]
    captions: list[dict] = [
        {"id": 10 * index + place, "image_id": 100 + index, "caption": text}
        for index, texts in enumerate(CAPTIONS)
        for place, text in enumerate(texts)
    ]
    x0, y0, x1, y1 = BOX_XYXY
    polygon = [[x0, y0, x1, y0, x1, y1]]
    region = {
        "id": 1,
        "image_id": 101,
        "category_id": 3,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": polygon,
        "iscrowd": 0,
    }
    crowd = {**region, "id": 2, "iscrowd": 1, "segmentation": {"size": [20, 40], "counts": [8]}}
    info = {"info": {"year": 2017}, "licenses": []}
    (folder / f"captions_{subset}.json").write_text(
        json.dumps({**info, "images": images, "annotations": captions}), encoding="utf-8"
    )
    instances = {
        **info,
        "images": images[::-1],
        "annotations": [region, crowd],
        "categories": [{"id": 3, "name": DESCRIPTION, "supercategory": "part"}],
    }
    (folder / f"instances_{subset}.json").write_text(json.dumps(instances, indent=1))
    return folder / f"captions_{subset}.json", folder / f"instances_{subset}.json"


def coco(folder: Path) -> Collection:
    """COCO's captions and instances."""
    captions, _ = coco_files(folder / "coco" / "annotations")
    return Collection(
        folder / "coco",
        images=write_images(folder / "images"),
        change=lambda: replace_in(captions, "a blue", "a blew"),
        spoil=lambda: replace_in(captions, '"file_name": "b.png"', '"file_name": 3'),
        message=r"captions_train2017\.json.*'file_name'",
    )


def csv_table(folder: Path) -> Collection:
    """A table as open_clip reads it; the second caption of the first image stands at the end."""
    rows = [
        ("filepath", "title", "url"),
        (NAMES[0], CAPTIONS[0][0], "-"),
        (NAMES[1], CAPTIONS[1][0], "-"),
        (NAMES[2], CAPTIONS[2][0], "-"),
        (NAMES[0], CAPTIONS[0][1], "-"),
    ]
    path = folder / "train.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return Collection(
        path,
        images=write_images(folder / "images"),
        change=lambda: replace_in(path, "a blue", "a blew"),
        spoil=lambda: replace_in(path, "b.png\t", "b.png "),
        message=r"train\.tsv:3: 2 columns, and the first line has 3",
        num_regions=(0, 0, 0),
    )


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of plain files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def webdataset(folder: Path) -> Collection:
    """Two tars: a text file, a JSON file, and a JSON file with a list of captions."""

    def second(caption: bytes) -> Path:
        entry = json.dumps({"caption": CAPTIONS[2][0], "url": "-"}).encode()
        members = [
            ("000000001.png", image_bytes(1)),
            ("000000001.txt", caption),
            ("000000002.json", entry),
            ("000000002.png", image_bytes(2)),
        ]
        return tar_of(folder / "shards" / "00001.tar", members)

    first = json.dumps({"captions": CAPTIONS[0]}).encode()
    members = [("000000000.png", image_bytes(0)), ("000000000.json", first)]
    tar_of(folder / "shards" / "00000.tar", members)
    second(CAPTIONS[1][0].encode())
    return Collection(
        folder / "shards",
        change=lambda: second(b"a blew bird, with a longer tail"),
        spoil=lambda: second(b"\xff"),
        message=r"00001\.tar/000000001\.txt: not UTF-8",
        num_regions=(0, 0, 0),
    )


def imagefolder(folder: Path) -> Collection:
    """Two classes; there is no text in it that could be damaged, so an image is."""
    root = folder / "classes"
    for index, (label, name) in enumerate((("house_wren", "a"), ("house_wren", "b"), ("jay", "c"))):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{name}.png").write_bytes(image_bytes(index))
    wren, jay = ("a photo of a house wren.",), ("a photo of a jay.",)
    return Collection(
        root,
        change=lambda: (root / "jay" / "d.png").write_bytes(image_bytes(2)),
        spoil=None,
        message="",
        num_regions=(0, 0, 0),
        captions=(wren, wren, jay),
        labels=("house wren", "house wren", "jay"),
    )


def parquet(folder: Path) -> Collection:
    """A table of Hugging Face's layout in two files, which tells its split by their names."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(number: int, rows: list[dict[str, Any]]) -> None:
        path = folder / "data" / f"train-0000{number}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, path, row_group_size=1)

    def rows(second: Any) -> list[dict[str, Any]]:
        return [
            {"image": {"bytes": image_bytes(0), "path": None}, "captions": list(CAPTIONS[0])},
            {"image": {"bytes": image_bytes(1), "path": "b.png"}, "captions": second},
        ]

    write(0, rows(list(CAPTIONS[1])))
    third = {"bytes": image_bytes(2), "path": "c.png"}
    write(1, [{"image": third, "captions": list(CAPTIONS[2])}])

    def spoil() -> None:
        spoilt = rows(list(CAPTIONS[1]))
        spoilt[1]["image"] = {"bytes": None, "path": None}
        write(0, spoilt)

    return Collection(
        folder / "data",
        change=lambda: write(0, rows(["a blew bird"])),
        spoil=spoil,
        message=r"train-00000-of-00002\.parquet, row 1: .*'image'",
        num_regions=(0, 0, 0),
    )


def refcoco_files(folder: Path, protocol: int = 2) -> tuple[Path, Path]:
    """refs(unc).p and instances.json of three images; the first and the third are of split val."""
    folder.mkdir(parents=True, exist_ok=True)
    x0, y0, x1, y1 = BOX_XYXY
    width, height = SIZE
    refs: list[dict[str, Any]] = []
    images, annotations = [], []
    for index, name in enumerate(NAMES):
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        annotations.append({"id": 50 + index, "image_id": index, "bbox": [0, 0, 20, 10]})
        annotations[-1] |= {"category_id": 3, "segmentation": [[0, 0, 20, 0, 20, 10]]}
        sentences = [{"sent": text, "raw": text.upper(), "tokens": []} for text in CAPTIONS[index]]
        refs.append({"image_id": index, "ann_id": 50 + index, "split": "train", "ref_id": index})
        refs[-1]["sentences"] = sentences
    annotations[1]["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    refs[1]["sentences"][0]["sent"] = DESCRIPTION
    refs += [{**refs[0], "split": "testA"}, {**refs[2], "split": "val"}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    instances = {"images": images, "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder / "refs(unc).p", folder / "instances.json"


def refcoco(folder: Path) -> Collection:
    """Expressions in a pickle of plain values."""
    refs, _ = refcoco_files(folder / "refcoco")

    def alter(**changes: Any) -> None:
        content = pickle.loads(refs.read_bytes())
        content[1] |= changes
        refs.write_bytes(pickle.dumps(content, 2))

    return Collection(
        refs.parent,
        images=write_images(folder / "images"),
        change=lambda: alter(sentences=[{"sent": "a short tail"}]),
        spoil=lambda: alter(ann_id=None),
        message=r"refs\(unc\)\.p, expression 1: 'ann_id' must be a whole number",
        captions=((", ".join(CAPTIONS[0]),), (DESCRIPTION,), CAPTIONS[2]),
        build={"captions_from_regions": True},
        num_regions=(2, 1, 1),
    )


def official_grain(folder: Path) -> Collection:
    """The three files of the official code, boxes in its frame of 960 by 960 pixels."""
    root = folder / "official"
    root.mkdir()
    rows = ["path,caption", *(f"{name},{CAPTIONS[i][0]}" for i, name in enumerate(NAMES))]
    (root / "captions_pooled.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "captions_cc12m_pooled.json").write_text(json.dumps({NAMES[0]: CAPTIONS[0][1]}))
    x0, y0, x1, y1 = BOX_XYXY
    bbox = [x0 * 960 / 40, y0 * 960 / 20, x1 * 960 / 40, y1 * 960 / 20]
    boxes: dict[str, list[dict]] = {name: [] for name in NAMES[::-1]}
    boxes[NAMES[1]] = [{"bbox": bbox, "score": 0.5, "description": DESCRIPTION}]
    path = root / "bboxes_cc12m_pooled.json"
    path.write_text(json.dumps(boxes))
    return Collection(
        root,
        images=write_images(folder / "images"),
        change=lambda: replace_in(path, "0.5", "0.75"),
        spoil=lambda: replace_in(path, '"score"', '"bbox"'),
        message=r"bboxes_cc12m_pooled\.json, byte .*\"bbox\" is given twice",
    )


def tfds(folder: Path) -> Collection:
    """A data set of TFDS with captions, and objects with boxes and labels."""
    root = folder / "tfds"
    x0, y0, x1, y1 = (v / s for v, s in zip(BOX_XYXY, (*SIZE, *SIZE), strict=True))
    kinds = tensorflow_datasets.features
    features = {
        "image": kinds.Image(),
        "captions": kinds.Sequence({"text": kinds.Text()}),
        "objects": kinds.Sequence(
            {"bbox": kinds.BBoxFeature(), "label": kinds.ClassLabel(names=[DESCRIPTION])}
        ),
    }
    tail = {"bbox": kinds.BBox(xmin=x0, ymin=y0, xmax=x1, ymax=y1), "label": 0}

    def write(second: str | bytes) -> None:
        shutil.rmtree(root, ignore_errors=True)
        texts = (CAPTIONS[0], (second,), CAPTIONS[2])
        examples = [
            {"image": image_bytes(i), "captions": [{"text": t} for t in texts[i]], "objects": []}
            for i in range(3)
        ]
        examples[1]["objects"] = [tail]
        tiny_tfds.build(root, features, {"train": examples})

    write(CAPTIONS[1][0])
    return Collection(
        root,
        change=lambda: write("a blew bird"),
        spoil=lambda: write(b"\xff"),
        message=r"split 'train', example 1: 'captions': not UTF-8",
    )


def annotations(folder: Path) -> Collection:
    """What `python -m grain_jax.annotate` writes: captions, and a region of the second image."""
    pytest.importorskip("pyarrow")
    from grain_jax.annotation.writer import AnnotationWriter
    from grain_jax.data.annotation_rows import Provenance, Row, content_hash

    root = folder / "annotations"

    def write(stage: str, image: str, **outputs: Any) -> None:
        with AnnotationWriter(root, stage) as writer:
            hashed = content_hash(image_bytes(NAMES.index(image)))
            writer.append(Row(image, hashed, Provenance("a model"), outputs))

    for name, captions in zip(NAMES, CAPTIONS, strict=True):
        write("describe", name, captions=list(captions), descriptions=[DESCRIPTION])
    box = [value / side for value, side in zip(BOX_XYXY, (*SIZE, *SIZE), strict=True)]
    region = {"box_xyxy": box, "description": DESCRIPTION, "score": 0.5}
    write("ground", NAMES[1], regions=[region])
    return Collection(
        root,
        images=write_images(folder / "images"),
        change=lambda: write("describe", NAMES[1], captions=["a green bird"]),
        spoil=None,  # a damaged file is refused as a whole
        message="",
    )


COLLECTIONS: dict[str, Callable[[Path], Collection]] = {
    "jsonl": jsonl,
    "flickr30k_entities": flickr30k_entities,
    "coco": coco,
    "csv": csv_table,
    "webdataset": webdataset,
    "imagefolder": imagefolder,
    "parquet": parquet,
    "refcoco": refcoco,
    "official_grain": official_grain,
    "tfds": tfds,
    "annotations": annotations,
}
