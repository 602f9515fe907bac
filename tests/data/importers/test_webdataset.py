"""Tars of samples: written by the library webdataset, and tars that others tampered with."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collections import image_bytes, tar_of

from grain_jax.data.build_dataset import build_split
from grain_jax.data.build_spec import DatasetBuildSpec
from grain_jax.data.checks import DatasetStatistics
from grain_jax.data.image_files import SkippedSample
from grain_jax.data.importers import FilePart, InvalidRecordError
from grain_jax.data.importers.webdataset import WebDataset
from grain_jax.data.tfds_records import RecordSource

PNG = image_bytes(1)
GOOD = [("good.png", PNG), ("good.txt", b"a good one")]


def built(path: Path, **changes) -> DatasetStatistics:
    spec = DatasetBuildSpec("webdataset", path, None, path.parent / "out", **changes)
    return build_split(spec, workers=1)


def test_what_the_library_webdataset_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for index in range(3):
            entry = {"caption": f"caption {index}", "key": str(index), "status": "success"}
            image = image_bytes(index, "JPEG")
            writer.write({"__key__": f"{index:09d}", "jpg": image, "json": entry})
    assert built(tmp_path / "00000.tar").images == 3
    records = RecordSource(tmp_path / "out", "train")
    assert [records[i].captions[0].text for i in range(3)] == [f"caption {i}" for i in range(3)]
    assert [records[i].image for i in range(3)] == [image_bytes(i, "JPEG") for i in range(3)]
    assert records[2].id == "000000002"


def test_fields_of_the_json_file_may_be_chosen(tmp_path: Path) -> None:
    entry = b'{"caption": "one", "short": "two", "long": ["three", "four"], "none": null}'
    tar = tar_of(tmp_path / "a.tar", [("k.txt", b"text"), ("k.json", entry), ("k.png", PNG)])
    assert [c.text for c in WebDataset(tar)[0].captions] == ["text"]
    chosen = WebDataset(tar, caption_columns=("long", "short", "none"))[0].captions
    assert [c.text for c in chosen] == ["three", "four", "two"]


def test_validation_is_not_read_as_train(tmp_path: Path) -> None:
    for name in ("cc3m-train-0000", "cc3m-train-0001", "cc3m-validation-0000"):
        members = [(f"{name}.png", PNG), (f"{name}.txt", b"x")]
        tar_of(tmp_path / "cc3m" / f"{name}.tar", members)
    assert built(tmp_path / "cc3m").images == 2
    read = WebDataset(tmp_path / "cc3m", split="x", subset="cc3m-validation")
    assert [read[i].id for i in range(len(read))] == ["cc3m-validation-0000"]
    pattern = WebDataset(tmp_path / "cc3m" / "cc3m-train-{0000..0001}.tar")
    assert [pattern[i].image for i in range(2)] == [
        f"cc3m-train-000{i}.tar/cc3m-train-000{i}.png" for i in range(2)
    ]


def test_keys_end_at_the_first_dot_and_have_their_folder(tmp_path: Path) -> None:
    names = ("./a.b/x.JPG", "./a.b/x.txt", "./a.b/x.seg.png")
    item = WebDataset(tar_of(tmp_path / "a.tar", [(name, PNG) for name in names[::2]]))[0]
    assert (item.id, item.image) == ("a.b/x", "a.tar/a.b/x.jpg")
    assert item.ignored == ("member .seg.png",)


def test_very_long_names_are_read(tmp_path: Path) -> None:
    key = "k" * 300
    tar = tar_of(tmp_path / "a.tar", [(f"{key}.png", PNG), (f"{key}.txt", b"x")])
    assert WebDataset(tar)[0].id == key


def special(kind: bytes, name: str = "bad.png", target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_what_is_not_a_plain_file_is_counted_and_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
        for kind in (*kinds, tarfile.DIRTYPE):
            archive.addfile(special(kind))
        for name in ("../up.png", "/root.png", "a/../../up.png", *(name for name, _ in GOOD)):
            member = tarfile.TarInfo(name)
            data = dict(GOOD).get(name, PNG)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    statistics = built(path)
    assert statistics.images == 1
    assert statistics.dropped_images == {
        "not a plain file in the archive": 4,
        "path outside the archive": 3,
    }


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.txt", b"no image")], "no image in the archive"),
        ([("x.png", PNG), ("x.png", PNG)], "member of the archive twice"),
        ([("x.png", PNG)], "no caption"),
        ([("x.png", b"GIF89a"), ("x.txt", b"x")], "corrupt image"),
    ],
)
def test_a_sample_that_is_skipped_is_counted(tmp_path: Path, members, reason: str) -> None:
    statistics = built(tar_of(tmp_path / "a.tar", [*GOOD, *members]))
    assert (statistics.images, statistics.dropped_images) == (1, {reason: 1})


@pytest.mark.parametrize("cut", [700, 1_100, 1_600])
def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path: Path, cut: int) -> None:
    path = tar_of(tmp_path / "a.tar", [*GOOD, ("z.png", PNG), ("z.txt", b"z" * 900)])
    start = 4 * 512  # of the second sample
    path.write_bytes(path.read_bytes()[: start + cut])
    statistics = built(path)
    assert (statistics.images, statistics.dropped_images["truncated archive"]) == (1, 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.png", PNG), ("x.txt", b"\xff")], r"a\.tar/x\.txt: not UTF-8"),
        ([("x.png", PNG), ("x.json", b"{")], r"a\.tar/x\.json: not JSON"),
        ([("x.png", PNG), ("x.json", b"[]")], r"a\.tar/x\.json: expected an object"),
        ([("x.png", PNG), ("x.json", b'{"a": 1, "a": 2}')], r'x\.json: "a" is given twice'),
        ([("x.png", PNG), ("x.json", b'{"caption": 3}')], r"x\.json: 'caption' must be a text"),
        ([("x.png", PNG), ("x.txt", b" " * (4 * 2**20 + 1))], r"x\.txt: larger than"),
    ],
)
def test_a_text_that_cannot_be_read_is_located(tmp_path: Path, members, message: str) -> None:
    importer = WebDataset(tar_of(tmp_path / "a.tar", members))
    with pytest.raises(InvalidRecordError, match=message):
        importer[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a tar"),
        (b"\x1f\x8b" + bytes(600), "is compressed, so members have no places"),
        (b"x" * 2_000, "is not a tar"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        WebDataset(tmp_path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"no files that end in \.tar"):
        WebDataset(tmp_path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tar") / "a.tar"


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 4_000), data=st.binary(min_size=1, max_size=600))
def test_damaged_bytes_are_records_or_named_errors(path: Path, at: int, data: bytes) -> None:
    whole = bytearray(tar_of(path, [*GOOD, ("z.png", PNG), ("z.txt", b"z")]).read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    assert all("a.tar" in message for message in messages_of(path))


def messages_of(path: Path) -> list[str]:
    """What is said of a tar and of its samples; any other error is raised."""
    try:
        importer = WebDataset(path)
    except ValueError as error:
        return [str(error)]
    said = []
    for index in range(len(importer)):
        try:
            item = importer[index]
        except (InvalidRecordError, SkippedSample) as error:
            said.append(str(error))
        else:
            part = item.content
            assert isinstance(part, FilePart)
            assert 0 <= part.size <= path.stat().st_size - part.offset
    return said


def with_pax(path: Path, headers: dict[str, str]) -> Path:
    """A tar of a good sample, one whose header has these pax records, and one more."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (*GOOD, ("x.png", PNG), ("x.txt", b"x"), ("z.png", PNG), ("z.txt", b"z")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "x.png":
                member.pax_headers = headers
            archive.addfile(member, io.BytesIO(data))
    return path


PAX_NAMES = (
    *("GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.minor"),
    *("GNU.sparse.numblocks", "GNU.sparse.realsize", "GNU.sparse.name", "size", "path", "linkpath"),
    *("mtime", "uid", "hdrcharset", "comment"),
)
PAX_VALUES = st.sampled_from(["1,x,2", "-1", "0", "1", "9" * 30, "1e400", "nan", "../x"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PAX_NAMES), PAX_VALUES | st.text(max_size=5), max_size=4))
def test_any_pax_headers_are_records_or_named_errors(path: Path, headers: dict) -> None:
    assert all("a.tar" in message for message in messages_of(with_pax(path, headers)))


@pytest.mark.parametrize("headers", [{"GNU.sparse.map": "1,x,2"}, {"size": "-1"}])
def test_a_hostile_header_costs_no_sample_before_it(tmp_path: Path, headers: dict) -> None:
    statistics = built(with_pax(tmp_path / "a.tar", headers))
    assert (statistics.images, statistics.dropped_images["truncated archive"]) == (1, 1)


def test_members_of_macos_are_left_out_and_counted(tmp_path: Path) -> None:
    names = ("0.jpg", "0.txt", "a/1.jpg", "a/1.txt")
    members = []
    for name in names:
        folder, slash, file = name.rpartition("/")
        members.append((f"{folder}{slash}._{file}", b"\0\5\x16\7"))
        members.append((name, b"x" if name.endswith("txt") else PNG))
    statistics = built(tar_of(tmp_path / "a.tar", [(".DS_Store", b""), *members]))
    assert (statistics.images, statistics.dropped_images.total()) == (2, 0)
    assert statistics.notes == [
        "5 members of the tars have names that begin with a dot, such as those that macOS writes, "
        "and were left out."
    ]
