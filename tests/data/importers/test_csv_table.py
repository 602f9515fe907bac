"""Tables of paths and captions: columns and separators that are found, rows that are refused."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.data.importers import InvalidRecordError
from grain_jax.data.importers.csv_table import CsvTable


def table(path: Path, text: str | bytes, **options) -> CsvTable:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CsvTable(path, **options)


def texts(importer: CsvTable) -> dict[str, list[str]]:
    items = [importer[i] for i in range(len(importer))]
    return {item.image: [caption.text for caption in item.captions] for item in items}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv") / "t.csv"


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), CELLS, CELLS), min_size=1, max_size=8),
    separator=st.sampled_from("\t,;|"),
)
def test_what_the_csv_library_writes_is_read(path: Path, rows: list, separator: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerows([("image", "other", "caption"), *rows])
    expected: dict[str, list[str]] = {}
    for image, _, caption in rows:
        expected.setdefault(image, []).append(caption)
    assert texts(CsvTable(path)) == expected
    assert [*texts(CsvTable(path))] == [*expected]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([b"image,caption\n", b"image,caption", b'image,"caption', b""]),
    st.binary(max_size=40) | st.text('a,"\n\r\u2028', max_size=30).map(str.encode),
)
def test_any_bytes_are_records_or_named_errors(path: Path, header: bytes, data: bytes) -> None:
    said = []
    try:
        importer = table(path, header + data)
    except ValueError as error:
        said.append((f"{path}", str(error)))
    else:
        for index in range(len(importer)):
            try:
                assert importer[index].image
            except InvalidRecordError as error:
                said.append((f"{path}:", str(error)))
    assert all(where in message for where, message in said)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("filepath,title\na,x\n", {}, {"a": ["x"]}),
        ("\ufefffilepath\ttitle\r\na\tx, y\r\n\r\n", {}, {"a": ["x, y"]}),
        ('path;Caption\na;"x\ny;""z"""\n', {}, {"a": ['x\ny;"z"']}),
        ("p c\na x\n", {"separator": " ", "image_column": "p", "caption_columns": ("c",)}, None),
        ("file,text,title\na,x,y\n", {"caption_columns": ("title", "text")}, {"a": ["y", "x"]}),
        ("file\ttitle\na\t\nb\ty", {"separator": "tab"}, {"a": [""], "b": ["y"]}),
    ],
)
def test_columns_are_found_or_given(tmp_path: Path, text, options, expected) -> None:
    assert texts(table(tmp_path / "t", text, **options)) == (expected or {"a": ["x"]})


def test_a_column_of_class_names(tmp_path: Path) -> None:
    importer = table(tmp_path / "t", "file,title,label\na,x,wren\nb,y,\n")
    assert [importer[i].label for i in range(2)] == ["wren", None]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a.jpg\n", {}, "has no separator"),
        ("", {}, "no header line"),
        (b"\xff,title\n", {}, "not text in UTF-8"),
        (b"file,title\ra.jpg,x\r", {}, "CR line ends"),
        (b'file,"title\na,b\n', {}, "the first line: unclosed quote"),
        (b"\x1f\x8b\x08\0", {}, "compressed with gzip; decompress it first"),
        ("file,title\n".encode("utf-16"), {}, "in UTF-16; convert it"),
        ("x,y\na,b\n", {}, "no column of images with a usual name; it has x, y"),
        ("file,y\na,b\n", {}, "no column of captions with a usual name; it has file, y"),
        ("file,label\na,b\n", {}, "no column of captions"),
        ("file,image,title\n", {}, "several columns that could hold images: file, image"),
        ("file,text,title\n", {}, "could hold captions: text, title. Choose with --caption_col"),
        ("file,title\n", {"image_column": "x"}, "no column 'x'; it has file, title"),
        ("file,title\n", {"separator": "::"}, "--separator='::' must be one character"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(tmp_path, text, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path / "t", text, **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"a,x,y", r"t:3: 3 columns, and the first line has 2"),
        (b"a", r"t:3: 1 columns"),
        (b",x", r"t:3: no path in column 'file'"),
        (b"a,\xe9t\xe9", r"t:3: not UTF-8 text \(.* at byte 2\)"),
        (b'a,"' + b"x\n" * 100_000, "t:3: unclosed quote"),
        (b'a,"x" y', "t:3: text behind a closing quote"),
        (b"a," + b"x" * 200_000, "t:3: a text of more than 131,072 characters"),
    ],
)
def test_a_row_that_cannot_be_read_is_located(tmp_path: Path, row: bytes, message: str) -> None:
    importer = table(tmp_path / "t", b"file,title\nfirst,x\n" + row)
    assert importer[0].image == "first"
    with pytest.raises(InvalidRecordError, match=message):
        importer[1]


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grain_jax.data.importers.csv_table.MAX_ROW_BYTES", 30)
    importer = table(tmp_path / "t", "file,title\na," + "x" * 40 + "\n")
    with pytest.raises(InvalidRecordError, match="t:2: the row is longer than 30 bytes"):
        importer[0]


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ('1,"x\n2,ok\n3,"y\n', ["2"]),
        ('1,"the best\n2,b\n3,c\n4,d\n', ["2", "3", "4"]),
        ('1,"a\nb"\n2,"b\n3,c" d\n', ["1", "3"]),
    ],
)
def test_a_stray_quote_costs_no_row_but_its_own(tmp_path: Path, rows: str, good: list) -> None:
    importer = table(tmp_path / "t", "file,title\n" + rows)
    read, said = [], []
    for index in range(len(importer)):
        try:
            read.append(importer[index].image)
        except InvalidRecordError as error:
            said.append(str(error))
    assert read == good
    assert any("unclosed quote" in message for message in said)


def test_a_row_that_cannot_be_read_costs_no_other_of_its_image(tmp_path: Path) -> None:
    importer = table(tmp_path / "t", b"file,title\na,good\na,caf\xe9\n,x\n,y\na,two\n")
    assert [caption.text for caption in importer[0].captions] == ["good", "two"]
    for index, message in ((1, "t:3: not UTF-8"), (2, "t:4: no path"), (3, "t:5: no path")):
        with pytest.raises(InvalidRecordError, match=message):
            importer[index]


def test_rows_of_one_image_have_one_label(tmp_path: Path) -> None:
    text = "file,title,label\na,x,wren\na,y,\nb,x,wren\nb,y,jay\n"
    importer = table(tmp_path / "t", text)
    assert importer[0].label == "wren"
    with pytest.raises(InvalidRecordError, match="t:5: 'b' has the label 'jay', and in line 4 'w"):
        importer[1]
