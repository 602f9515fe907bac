"""What holds for every format that prepare reads."""

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_collections import BOX_XYXY, COLLECTIONS, DESCRIPTION, SIZE, Collection

from grain_jax import prepare
from grain_jax.data import build_dataset, build_shard
from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec, images_folder, importer_options
from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.importers import IMPORTERS, Importer, InvalidRecordError
from grain_jax.data.tfds_records import RecordSource
from grain_jax.data.uncompressed_png import view_uncompressed


@pytest.fixture(params=IMPORTERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def collection(name: str, tmp_path: Path) -> Collection:
    if name not in COLLECTIONS:
        pytest.fail(f"there is no small collection of {name!r} in tests/helpers; add one")
    return COLLECTIONS[name](tmp_path)


def spec(name: str, collection: Collection, out: Path, **changes) -> DatasetBuildSpec:
    return DatasetBuildSpec(
        name,
        collection.input,
        collection.images,
        out,
        **{"options": collection.options, **collection.build, **changes},
    )


def opened(name: str, collection: Collection) -> Importer:
    return spec(name, collection, Path("out")).importer()


def test_records_are_read_in_any_order(name: str, collection: Collection) -> None:
    importer = opened(name, collection)
    assert isinstance(importer, Importer)
    items = [importer[i] for i in range(len(importer))]
    assert [importer[i] for i in reversed(range(len(importer)))] == items[::-1]
    if not collection.build:
        assert [c.text for c in items[0].captions] == list(collection.captions[0])


def test_a_pickled_importer_reads_the_same(name: str, collection: Collection) -> None:
    importer = opened(name, collection)
    before = [importer[i] for i in range(len(importer))]  # which may open files
    sent = pickle.dumps(importer)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    assert [again[i] for i in range(len(again))] == before
    assert again.fingerprint() == importer.fingerprint()


def test_a_changed_input_is_noticed(name: str, collection: Collection) -> None:
    before = opened(name, collection)
    fingerprint = before.fingerprint()
    ranges = [*itertools.combinations(range(len(before) + 1), 2)]
    sums = [before.checksum(*span) for span in ranges]
    again = opened(name, collection)
    assert again.fingerprint() == fingerprint
    assert [again.checksum(*span) for span in ranges] == sums
    collection.change()
    after = opened(name, collection)
    assert after.fingerprint() != fingerprint
    assert after.checksum(0, len(after)) != sums[ranges.index((0, len(before)))]


def test_an_unreadable_record_is_named(name: str, collection: Collection) -> None:
    if collection.spoil is None:
        pytest.skip("its records have nothing to read but names of files")
    collection.spoil()
    importer = opened(name, collection)
    read = []
    errors = []
    for index in range(len(importer)):
        try:
            read.append(importer[index])
        except InvalidRecordError as error:
            errors.append(error)
    assert read  # one bad record is no reason not to read the others
    assert len(errors) == 1
    with pytest.raises(InvalidRecordError, match=collection.message):
        raise errors[0]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_data_set_is_read_back(name, collection, workers, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build_dataset, "MIN_SHARD", 2)  # two shards
    figures = build_split(spec(name, collection, tmp_path / "out"), workers=workers)
    assert figures.images == 3
    source = RecordSource(tmp_path / "out", "train")
    records = [source[i] for i in range(len(source))]
    assert [tuple(c.text for c in r.captions) for r in records] == list(collection.captions)
    assert [r.label for r in records] == list(collection.labels)
    assert tuple(len(record.regions) for record in records) == collection.num_regions
    for region in records[1].regions:
        assert region.description == DESCRIPTION
        scale = (*SIZE, *SIZE)
        assert region.box_xyxy == pytest.approx(
            [v / s for v, s in zip(BOX_XYXY, scale, strict=True)]
        )


def test_images_of_every_format_can_be_stored_decoded(name, collection, tmp_path) -> None:
    notes: list[str] = []
    cache = DecodedCache(SIZE[1] // 2)
    build = spec(name, collection, tmp_path / "out", decoded_cache=cache)
    assert build_split(build, workers=1, note=notes.append).images == 3
    assert "bytes each in the mean of 3," in notes[0]
    source = RecordSource(tmp_path / "out", "train")
    for index in range(3):
        pixels = view_uncompressed(source[index].image)
        assert pixels.shape == (SIZE[1] // 2, SIZE[0] // 2, 3)
        np.testing.assert_array_equal(pixels, np.broadcast_to(pixels[0, 0], pixels.shape))


def test_an_interrupted_build_continues(name, collection, tmp_path, monkeypatch) -> None:
    def stop(state: build_dataset.Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_dataset, "MIN_SHARD", 1)
    with pytest.raises(KeyboardInterrupt):
        build_split(spec(name, collection, tmp_path / "out"), workers=1, progress=stop)
    written = []
    encode = build_shard.encode_record
    monkeypatch.setattr(build_shard, "encode_record", lambda r: written.append(r) or encode(r))
    assert build_split(spec(name, collection, tmp_path / "out"), workers=1).images == 3
    assert len(written) == 2  # the first shard is kept


def test_the_command_builds_it(name: str, collection: Collection, tmp_path: Path, capsys) -> None:
    words = [f"--from={name}", f"--input={collection.input}", f"--output={tmp_path / 'out'}"]
    if collection.images is not None:
        words.append(f"--images={collection.images}")
    for option, value in collection.options.items():
        words.append(f"--{option}={','.join(value) if isinstance(value, tuple) else value}")
    words += [f"--{switch}" for switch in collection.build]
    assert prepare.main([*words, "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "records read" in said
    assert len(RecordSource(tmp_path / "out", "train")) == 3


def test_options_of_others_are_refused(name: str, collection: Collection, tmp_path: Path) -> None:
    every = {field.name for field in dataclasses.fields(prepare.ImporterOptions)}
    assert set(importer_options(name)) <= every  # so that the command offers them
    for option in every - set(importer_options(name)):
        wrong = spec(name, collection, tmp_path / "out", options={option: "x"})
        with pytest.raises(ValueError, match=rf"--{option} is not an option of --from={name}; "):
            wrong.validate()


def test_images_are_asked_for_where_they_are_read(name, collection, tmp_path) -> None:
    kind = images_folder(name)
    given = dataclasses.replace(spec(name, collection, tmp_path / "out"), images=tmp_path)
    missing = dataclasses.replace(given, images=None)
    if kind in ("input", "inside"):
        with pytest.raises(ValueError, match="leave --images out"):
            given.validate()
    if kind == "required":
        with pytest.raises(ValueError, match="needs --images=DIR"):
            missing.validate()


def test_an_input_that_is_not_there_is_named(name: str, collection, tmp_path: Path) -> None:
    wrong = dataclasses.replace(
        spec(name, collection, tmp_path / "out"), input=tmp_path / "nothere"
    )
    with pytest.raises(ValueError, match=r"--input=.*nothere does not exist"):
        wrong.validate()


def test_every_option_has_a_format() -> None:
    offered = {field.name for field in dataclasses.fields(prepare.ImporterOptions)}
    assert offered == {option for name in IMPORTERS for option in importer_options(name)}
