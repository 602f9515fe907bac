import json
import tomllib

import pytest

from grain_jax.evaluation.suite_file import ImageSet, RecordSet, packaged_suites, read_suite

TEXT = """
note = "Two sets."
methods = ["name", "description"]
alphas = [1, 0.5]

[[images]]
name = "colours"
data = "sets/colours"
metric = "per_class"
descriptions = "texts.json#colours"
counts = "cub:cc12m_text"
num_classes = 3

[[images]]
name = "shapes"
in_average = false

[[records]]
name = "photographs"
split = "dev"
tasks = ["retrieval"]
"""


@pytest.fixture
def write(tmp_path):
    def written(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


def test_a_suite_is_read_as_it_is_written(write, tmp_path):
    suite = read_suite(write(TEXT))
    assert (suite.name, suite.note, suite.alphas) == ("mine", "Two sets.", (1, 0.5))
    assert suite.methods == ("name", "description")
    colours, shapes = suite.images
    assert colours == ImageSet(
        name="colours",
        data="sets/colours",
        metric="per_class",
        descriptions="texts.json#colours",
        counts="cub:cc12m_text",
        num_classes=3,
    )
    assert not shapes.in_average
    assert suite.records == (RecordSet(name="photographs", split="dev", tasks=("retrieval",)),)


def test_json_says_the_same(write):
    stored = json.dumps({"name": "mine", **tomllib.loads(TEXT)})
    other, suite = read_suite(write(stored, "other.json")), read_suite(write(TEXT))
    assert other == suite
    assert other.sha256 == suite.sha256
    changed = TEXT.replace("num_classes = 3", "num_classes = 4")
    assert read_suite(write(changed)).sha256 != suite.sha256


def test_paths_are_relative_to_the_file(write, tmp_path):
    suite = read_suite(write(TEXT))
    colours, shapes = suite.images
    assert suite.place(colours, tmp_path / "data") == tmp_path / "sets" / "colours"
    assert suite.place(shapes, tmp_path / "data") == tmp_path / "data" / "shapes"
    assert suite.place(shapes, None) == tmp_path / "shapes"
    assert suite.text(colours.descriptions) == str(tmp_path / "texts.json#colours")
    assert suite.text("/elsewhere/texts.json") == "/elsewhere/texts.json"
    assert suite.text(colours.counts) == "cub:cc12m_text"  # published ones are not a file
    assert suite.text("") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sets"),
        ("images = 3", "images is a list of tables"),
        ("[[image]]\nname = 'a'", "unknown key 'image'; did you mean 'images'"),
        ("[[images]]\nname = 'a'\ntemplate = 'b'", r"images\[0\]: unknown key 'template'; did you"),
        ("[[images]]\nname = 'a'\nfolder = 'b'", "unknown key 'folder'; expected name, data"),
        ("folder = 'b'\n[[images]]\nname = 'a'", "unknown key 'folder'"),
        ("packaged = true\n[[images]]\nname = 'a'", "unknown key 'packaged'"),
        ("[[images]]\ndata = 'a'", "has no name"),
        ("[[images]]\nname = 3", "name is a text, not 3"),
        ("[[images]]\nname = 'a'\nnum_classes = 2.5", "num_classes is a whole number, not 2.5"),
        ("[[images]]\nname = 'a'\nnum_images = true", "num_images is a whole number, not True"),
        ("[[images]]\nname = 'a'\nnum_images = 0", "num_images of 'a' should be at least 1"),
        ("[[images]]\nname = 'a'\nkeep_names = 1", "keep_names is true or false, not 1"),
        ("[[images]]\nname = 'a'\nmetric = 'top3'", "metric is one of top1, per_class, not 'top3'"),
        ("[[records]]\nname = 'a'\ntasks = ['names']", "tasks is one of retrieval, grounding"),
        ("[[records]]\nname = 'a'\ntasks = 'retrieval'", "tasks is a list, not 'retrieval'"),
        ("[[images]]\nname = 'a'\n[[records]]\nname = 'a'", "'a' is the name of two"),
        ("[[images]]\nname = 'mine'", "'mine' is the name of two"),
        ("[[images]]\nname = 'a/b'", "'a/b' is not a name of a set"),
        ("methods = ['nearest']\n[[images]]\nname = 'a'", "Unknown method 'nearest'"),
        ("alphas = [1.5]\n[[images]]\nname = 'a'", "alphas are numbers from 0 to 1"),
        ("alphas = ['1']\n[[images]]\nname = 'a'", "alphas is a number, not '1'"),
        ("[[images]\nname = 'a'", "is not TOML"),
    ],
)
def test_mistakes_in_a_file_are_named(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_suite(write(text))


def test_other_files_are_not_suites(write, tmp_path):
    with pytest.raises(ValueError, match="is not JSON"):
        read_suite(write("{", "a.json"))
    with pytest.raises(ValueError, match="is a list, and a table was expected"):
        read_suite(write("[]", "b.json"))
    with pytest.raises(ValueError, match=r"There is no suite .*\.py'.*ends in \.toml or \.json"):
        read_suite(write("print()", "c.py"))
    with pytest.raises(ValueError, match="did you mean 'grain11'"):
        read_suite("grain12")


@pytest.mark.parametrize("name", packaged_suites())
def test_suites_of_the_package_are_read(name, tmp_path):
    suite = read_suite(name)
    assert suite.name == name
    assert all(not one.data for one in suite.sets)
    first = suite.sets[0]
    assert suite.place(first, tmp_path) == tmp_path / first.name
    with pytest.raises(ValueError, match=f"give --suite_data=FOLDER.*{first.name!r}"):
        suite.place(first, None)


def test_the_official_average_is_over_eleven_of_twelve_sets():
    sets = read_suite("grain11").images
    assert len(sets) == 12
    assert [one.name for one in sets if not one.in_average] == ["imagenet"]
