"""A prepared data set that lies in a bucket."""

import pytest
from prepared_records import noise_image, write_prepared

from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tfds_records import RecordSource


def some(count):
    return [
        Record(
            id=f"image{i}",
            image=noise_image(i),
            captions=(Caption(f"caption {i}", "alt"),),
            regions=(Region((0.1, 0.2, 0.5, 0.6), "a beak", 0.5),),
            label=None,
        )
        for i in range(count)
    ]


def test_records_are_those_of_the_disk(storage, tmp_path):
    folder = write_prepared(tmp_path / "set", {"train": some(20)})
    for path in folder.iterdir():
        storage.put("bucket", f"set/{path.name}", path.read_bytes())
    there, here = (RecordSource(each, "train") for each in ("gs://bucket/set", folder))
    assert len(there) == 20
    rows = [7, 0, 19, 7, 3]
    storage.sent.clear()
    assert there.__getitems__(rows) == here.__getitems__(rows)
    reads = [sent for sent in storage.sent if "array_record" in sent.path]
    assert len(reads) <= len(rows) + 4  # a request a record, and those that open the file


@pytest.mark.usefixtures("storage")
def test_a_missing_set_is_named():
    with pytest.raises(ValueError, match="'gs://bucket/nothing' holds no prepared data set"):
        RecordSource("gs://bucket/nothing", "train")
    with pytest.raises(ValueError, match=r"There is no bucket 'other'.* mounted: docs/scale\.md"):
        RecordSource("gs://other/set", "train")
