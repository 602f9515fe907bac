"""One rule for the images that a table and prepared lines name."""

import pytest

from grain_jax.data.checks import read_image_file
from grain_jax.data.classification.labels_table import FilesOnDisk, read_labels_table
from grain_jax.data.image_files import SkippedSample


def of_table(name, folder) -> bytes:
    (folder / "labels.csv").write_text(f"file,label\n{name},cat\n", encoding="utf-8")
    ((file, _),) = read_labels_table(folder / "labels.csv")
    found = FilesOnDisk(folder).find(file)
    assert found is not None
    return (folder / found).read_bytes()


@pytest.mark.parametrize("read", [read_image_file, of_table])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("b:c.png", "b:c.png"),
        ("b\\c.png", "b\\c.png"),
        ("b\\d.png", "b/d.png"),
        ("..\\c.png", "..\\c.png"),
        ("x/../b.png", "b.png"),
    ],
)
def test_names_that_look_odd_are_found(tmp_path, read, name, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(b"found")
    assert read(name, tmp_path) == b"found"


@pytest.mark.parametrize("read", [read_image_file, of_table])
@pytest.mark.parametrize("name", ["/c.png", "..\\c.png", "x/../../c.png", "C:\\c.png", "C:/c.png"])
def test_names_that_lead_out_are_refused(tmp_path, read, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "c.png").write_bytes(b"outside")
    with pytest.raises((SkippedSample, ValueError), match="leads out of the folder"):
        read(name, tmp_path / "in")
