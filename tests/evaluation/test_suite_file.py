import json
import tomllib

import pytest

from grain_jax.evaluation.suite_file import ImageSet, RecordSet, packaged_suites, read_suite
from grain_jax.zero_shot.methods import ONE_PASS

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


G = "[[grounding]]\nname = 'a'\nformat = 'coco'\n"


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
        ("[[images]]\nname = 'a'\ntexts = 'b.json'", "texts is a table"),
        ("[[images]]\nname = 'a'\ntexts = {cupl = 3}", "texts.cupl is a text"),
        ("[[images]]\nname = 'a'\ntexts = {cup = 'b.json'}", "'cup', and the kinds of texts"),
        ("[[images]]\nname = 'a'\ncrops = 0", "crops of 'a' should be at least 1"),
        ("[[images]]\nname = 'a'\ncrop_sizes = [0.9, 0.7]", "crop_sizes of 'a' are the smallest"),
        ("[[images]]\nname = 'a'\ncrop_sizes = [0.9]", "crop_sizes of 'a' are the smallest"),
        ("[[images]]\nname = 'a'\ncrop_seed = -1", "crop_seed of 'a' should be 0 or more"),
        ("[[images]]\nname = 'a'\nfolder = 'b'", "unknown key 'folder'; expected name, data"),
        ("folder = 'b'\n[[images]]\nname = 'a'", "unknown key 'folder'"),
        ("packaged = true\n[[images]]\nname = 'a'", "unknown key 'packaged'"),
        ("[[images]]\ndata = 'a'", "has no name"),
        ("[[images]]\nname = 3", "name is a text, not 3"),
        ("[[images]]\nname = 'a'\nnum_classes = 2.5", "num_classes is a whole number, not 2.5"),
        ("[[images]]\nname = 'a'\nnum_images = true", "num_images is a whole number, not True"),
        ("[[images]]\nname = 'a'\nnum_images = 0", "num_images of 'a' should be at least 1"),
        ("[[grounding]]\nname = 'a'", r"grounding\[0\] has no format"),
        (G + "box = 'given'", "unknown key 'box'; did you mean 'boxes'"),
        (G + "boxes = 'mine'", "boxes is one of predicted, given, not 'mine'"),
        (G + "feature = ['region', 'box']", "feature is one of region, crop, not 'box'"),
        (G + "feature = ['crop', 'crop']", "one feature or two different ones"),
        (G + "prompt = 'a photo'", "the prompt 'a photo' has no '{}'"),
        (G + "negatives = 3", "'a' has negatives, which only the format fg_ovd has"),
        (G + "metric = 'caption_top1'", "no wrong captions"),
        (G + "num_texts = 0", "num_texts of 'a' should be at least 1"),
        ("[[compositional]]\nname = 'a'\nformat = 'vl'", "format is one of sugarcrepe, winoground"),
        (
            "[[compositional]]\nname = 'a'\nformat = 'winoground'\nmetric = 'accuracy'",
            "the metrics group, text, image, not 'accuracy'",
        ),
        ("include = ['grain12']", "no suite 'grain12'; did you mean 'grain11'"),
        ("include = ['mine.toml']", "includes 'mine.toml', which includes it"),
        ("include = ['novel', 'novel']", "'novel' is the name of two"),
        ("include = ['novel']\n[[images]]\nname = 'let_it_wag'", "'let_it_wag' is the name of two"),
        ("include = 'novel'", "include is a list"),
        (
            "[[images]]\nname = 'a'\ndata = 'tfds:eurosat/rgb'",
            "is of TFDS; give its version",
        ),
        ("[[images]]\nname = 'a'\ndata = 'tfds:dtd:3.0.1'", "is of TFDS; give its version"),
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
    part = next(part for part in suite.every if part.sets)
    first = part.sets[0]
    assert part.place(first, tmp_path) == tmp_path / first.name
    with pytest.raises(ValueError, match=f"give --suite_data=FOLDER.*{first.name!r}"):
        part.place(first, None)
    for one in part.sets:
        assert part.place(one, tmp_path).is_relative_to(tmp_path)


def test_all_of_the_package_are_one_suite():
    every = read_suite("all").every
    assert {part.name for part in every} == set(packaged_suites())
    names = [one.name for part in every for one in part.sets]
    assert len(set(names)) == len(names)
    assert {"eurosat", "let_it_wag", "objectnet", "docci", "refcoco+_testA"} <= set(names)


def test_classes_of_every_packaged_set_are_counted():
    """But of products, of which everybody has others."""
    sets = [one for part in read_suite("all").every for one in part.images]
    assert [one.name for one in sets if one.num_classes is None] == ["products2023"]


def test_sentences_of_the_splits_of_refcoco_are_the_published_ones():
    asked = {one.name: one.num_texts for one in read_suite("grounding").grounding}
    of_split = {name: n for name, n in asked.items() if "_given" not in name and n is not None}
    # Of 142,210 and 141,564 expressions, those that are not in the training splits.
    assert sum(n for name, n in of_split.items() if "refcoco_" in name) == 142_210 - 120_624
    assert sum(n for name, n in of_split.items() if "refcoco+" in name) == 141_564 - 120_191
    assert all(asked[f"{name}_given"] == n for name, n in of_split.items())


def test_a_suite_in_another_has_its_methods_and_its_own_paths(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("methods = ['name']\nalphas = [0.5]\n[[images]]\nname = 'a'\ndata = 'x'", "sub/one.toml")
    write("include = ['one.toml']\n[[images]]\nname = 'b'\nmethods = ['name']", "sub/two.toml")
    suite = read_suite(write("methods = ['description']\ninclude = ['sub/two.toml']", "o.toml"))
    _, two, one = suite.every
    assert (one.name, two.name) == ("one", "two")
    assert one.methods == two.methods == ("description",)
    assert (one.alphas, two.images[0].methods) == ((0.5,), ("name",))
    assert one.place(one.images[0], None) == tmp_path / "sub" / "x"
    before = suite.sha256
    write("[[images]]\nname = 'a'\ndata = 'y'", "sub/one.toml")
    assert read_suite(str(tmp_path / "o.toml")).sha256 != before


def test_the_official_average_is_over_eleven_of_twelve_sets():
    sets = read_suite("grain11").images
    assert len(sets) == 12
    assert [one.name for one in sets if not one.in_average] == ["imagenet"]


def test_only_places_has_crops_of_its_own_as_published():
    numbers = {one.name: one.crop_numbers for one in read_suite("grain11").images}
    found = {name: own for name, own in numbers.items() if own}
    assert found == {"places365": {"smallest": 0.7, "largest": 0.9}}


def test_all_stands_for_the_methods_that_encode_an_image_once(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("methods = ['all']\n[[images]]\nname = 'a'\nmethods = ['wca', 'all', 'name']")
    suite = read_suite(str(file))
    assert suite.methods == ONE_PASS
    assert suite.images[0].methods == ("wca", *ONE_PASS)
