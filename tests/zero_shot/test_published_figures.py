"""Figures that the documents quote, against the published tables; skipped where those are not."""

import csv
import io
import re
import zipfile

import pytest
from places import REPOSITORY

TABLES = REPOSITORY.parent / "shared" / "data" / "baselines.zip"
NAMED = (  # in the order of the sentence, of ImageNet and ViT-B/32
    *("baselines", "baselines_gpt", "waffleclip", "shared_randomized_descriptions"),
    "swapped_descriptions",
)


def published(table: str) -> float:
    with zipfile.ZipFile(TABLES) as archive:
        text = archive.read(f"baselines/waffleclip_results/{table}.csv").decode()
    wanted = {"dataset=imagenet", "model_size=ViT-B/32"}
    (row,) = (row for row in csv.reader(io.StringIO(text)) if wanted <= set(row[0].split("; ")))
    return float(row[1])


@pytest.mark.skipif(not TABLES.exists(), reason="needs ../shared/data/baselines.zip")
def test_figures_of_waffleclip_are_those_of_its_tables():
    page = (REPOSITORY / "docs" / "zero-shot.md").read_text()
    sentence = page.split("on ImageNet, ViT-B/32 has")[1].split("(published")[0]
    quoted = re.findall(r"\b\d\d\.\d\d\b", sentence)
    assert quoted == [f"{published(table):.2f}" for table in NAMED]
