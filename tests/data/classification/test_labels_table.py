import unicodedata

import pytest

from grain_jax.data.classification.labels_table import FilesOnDisk, read_labels_table

PLAIN = [("a.png", "cat"), ("b.png", "dog")]


def read(folder, content: str | bytes) -> list[tuple[str, str]]:
    path = folder / "labels.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_labels_table(path, note=lambda text: None)


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na.png,cat\nb.png,dog\n",
        "\ufefffile,label\r\na.png,cat\r\nb.png,dog\r\n",  # as Excel writes it
        "file;label\na.png;cat\nb.png;dog",
        "file\tlabel\na.png\tcat\nb.png\tdog\n",
        "file,label\ra.png,cat\rb.png,dog\r",
        '\n File , "Label"\n\n  \na.png, cat \n,\n"b.png", "dog"\n\n',
        "id,file,note,label\n1,./a.png,,cat\n2,b.png,x,dog\n",
        'file,label,caption\na.png,cat,"two\nlines, and more"\nb.png,dog,\n',
        "file,label\na.png,cat\nb.png,dog\n".encode("utf-16"),
    ],
)
def test_tables_as_programs_write_them(tmp_path, content):
    assert read(tmp_path, content) == PLAIN


def test_labels_keep_separators_and_quotes(tmp_path):
    content = 'file,label\na.png,"cat, grey"\nb.png,12" pizza\nc [1].png,"a ""big"" one"\n'
    labels = [label for _, label in read(tmp_path, content)]
    assert labels == ["cat, grey", '12" pizza', 'a "big" one']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('file,label\na.png,cat\nb.png,"12 inch\nc.png,dog\n', "Line 3 .*labels.csv.* not closed"),
        ('file,label\nb.png,"12 inch\nc.png,"dog"\n', "Line 2 .*labels.csv.* not closed"),
        ('file,label\na.png,cat\nb.png,"12"" pizza"x\n', "Line 3 .*labels.csv.* not closed"),
        ('file,label\nb.png,"12 inch\n' + "c.png,dog\n" * 20_000, "Line 2 .*not closed"),
        ('file,label\na.png,"cat\ngrey"\nb.png,dog\n', "Line 2 .*several lines"),
        ('note,file,label\n"one\ntwo",a.png,cat\nx,b.png,"dog\n', "Line 4 .*not closed"),
        ("file,label\na.png,cat, grey\n", "Line 2 .* 3 cells for 2 columns"),
        ("file,label\na.png\n", "Line 2 .* lacks"),
        (
            "file,label\na.png,cat\n./a.png,dog\n",
            "Line 3 .* 'a.png' a second time, first in line 2",
        ),
        ("file,label\na.png,cat\nx/../../a.png,dog\n", "Line 3.* leads out"),
        ("file,label\nC:\\a.png,dog\n", "Line 2.* leads out"),
        ("file,label,label\na.png,dog,cat\n", "more than one column 'label'"),
        ("a.png,cat\nb.png,dog\n", "needs the columns file,label in its first line; .*'a.png,cat'"),
        ("", "needs the columns"),
        ("file,label\na.png,café\n".encode("latin-1"), "not text in UTF-8: line 2 .* 0xe9"),
        ("file,label\na.png,cat\n".encode("utf-16-le"), "zero byte in line 1"),
        (b"file,label\na.png,c\0t\n", "zero byte in line 2"),
    ],
)
def test_damaged_tables_are_refused_with_the_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


SWALLOWED = 'file,label,note\na.png,cat,"nice\nb.png,dog,\nc.png,dog,ends"\nd.png,dog,\n'


def test_rows_inside_a_quote_are_refused_where_they_list_images(tmp_path):
    (tmp_path / "c.png").touch()
    with pytest.raises(ValueError, match=r"Line 2 .* closed in line 4, .*line 4 .* 'c\.png'"):
        read(tmp_path, SWALLOWED)


def test_cells_of_several_lines_are_noted(tmp_path):
    (tmp_path / "labels.csv").write_text(SWALLOWED, encoding="utf-8")
    notes: list[str] = []
    pairs = read_labels_table(tmp_path / "labels.csv", note=notes.append)
    assert pairs == [("a.png", "cat"), ("d.png", "dog")]
    assert len(notes) == 1
    assert "1 of 2 entries have a cell of several lines (lines 2 to 4)" in notes[0]


def test_windows_paths_and_names_that_only_look_odd_are_read(tmp_path):
    content = "file,label\nimages\\a.png,cat\nx/../b:c.png,dog\n..a.png,cat\n"
    files = [file for file, _ in read(tmp_path, content)]
    assert files == ["images/a.png", "b:c.png", "..a.png"]


def test_files_are_found_however_their_letters_are_composed(tmp_path):
    composed = "café/crème.png"
    decomposed = unicodedata.normalize("NFD", composed)
    (tmp_path / decomposed).parent.mkdir()
    (tmp_path / decomposed).write_bytes(b"")
    files = FilesOnDisk(tmp_path)
    assert files.find(composed) == decomposed
    assert files.find(decomposed) == decomposed
    assert files.find("café/gone.png") is None
    assert files.find("gone.png") is None
