"""Published results: read from tables, bound to sets by name, set beside measured values."""

import csv
import io
import json
import zipfile

import pytest
from places import SHARED

from grain_jax.evaluation.published import (
    HUB_NAMES,
    SETS,
    Beside,
    PublishedModel,
    beside_published,
    golden_failure,
    known_set,
    packed_results,
    published_table,
    read_published,
    read_tables,
    stored_results,
)
from grain_jax.results import Result

TABLES = SHARED / "data" / "baselines.zip"
TABLE = """name,pretrained,params (M),ImageNet 1k,Oxford-IIIT Pet,Flickr image retr. R@1,FMoW
Small,seen,1.5,0.5,0.25,0.125,0.9
Small,half,1.5,0.4,,n/a,0.9
Large,seen,9.5,0.75,1.5,0.5,0.9
"""


def test_a_table_in_the_form_of_open_clip_is_read():
    tables = read_tables(TABLE)
    assert tables == {
        "Small/seen": {
            ("imagenet", "name", "top1"): 0.5,
            ("oxford_pets", "name", "per_class"): 0.25,
            ("flickr30k", "text_to_image", "R@1"): 0.125,
        },
        "Small/half": {("imagenet", "name", "top1"): 0.4},
        "Large/seen": {
            ("imagenet", "name", "top1"): 0.75,
            ("flickr30k", "text_to_image", "R@1"): 0.5,
        },
    }


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "name,pretrained\nx,y\n"])
def test_a_table_of_something_else_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="expected open_clip's"):
        read_tables(text)
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=r"table\.csv: A table of published results"):
        read_published(f"{tmp_path / 'table.csv'}#x/y")


def test_a_model_of_a_table_of_ones_own_is_found(tmp_path):
    (tmp_path / "mine.csv").write_text(TABLE)
    model = read_published(f"{tmp_path / 'mine.csv'}#Small/seen")
    assert (model.name, len(model.values)) == ("Small/seen", 3)
    meaning = published_table([], model).meaning
    assert "mine.csv" in meaning
    assert "CLIP_benchmark" not in meaning
    with pytest.raises(ValueError, match="the nearest: Small/seen"):
        read_published(f"{tmp_path / 'mine.csv'}#Smal/sen")
    with pytest.raises(ValueError, match=r"no file 'none\.csv'"):
        read_published("none.csv#Small/seen")


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match=r"121 models .* the nearest: ViT-B-16/openai"):
        read_published("vit_b16/openai")
    with pytest.raises(ValueError, match="ARCHITECTURE/WEIGHTS"):
        read_published("something else altogether")


def test_the_golden_figure_comes_with_the_package():
    model = read_published("ViT-B-16/openai")
    assert model.values["imagenet", "name", "top1"] == 0.6834
    assert read_published("openai/clip-vit-base-patch16") == model
    assert set(HUB_NAMES.values()) <= set(stored_results())


def test_the_stored_tables_are_the_published_ones():
    """Against the files of open_clip, cell by cell with csv alone."""
    if not TABLES.exists():
        pytest.skip("needs ../shared/data/baselines.zip")
    stored = stored_results()
    with zipfile.ZipFile(TABLES) as packed:
        names = ("openclip_results", "openclip_retrieval_results")
        texts = [packed.read(f"baselines/{name}.csv").decode() for name in names]
    assert read_tables(*texts) == stored
    for row in csv.DictReader(io.StringIO(texts[0])):
        values = stored[f"{row['name']}/{row['pretrained']}"]
        for key, one in SETS.items():
            if one.metric != "R@k":
                assert values[key, "name", one.metric] == float(row[one.column])
    for row in csv.DictReader(io.StringIO(texts[1])):
        values = stored[f"{row['name']}/{row['pretrained']}"]
        found = values["coco", "image_to_text", "R@5"], values["flickr30k", "text_to_image", "R@10"]
        assert found == (
            float(row["MSCOCO text retr. R@5"]),
            float(row["Flickr image retr. R@10"]),
        )
    assert packed_results(stored) == packed_results(read_tables(*texts))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("imagenet", "imagenet"),
        ("ImageNet-1k", "imagenet"),
        ("wds_imagenet1k", "imagenet"),
        ("imagenet_r", "imagenet_r"),
        ("imagenet-r", "imagenet_r"),
        ("cars", "stanford_cars"),
        ("imagenet2012-5.1.0", "imagenet"),
        ("cifar10-3.0.2", "cifar10"),
        ("wds_vtab-caltech101", "caltech101"),
        ("wds_vtab-flowers", "flowers102"),
        ("wds_vtab-eurosat_test", "eurosat"),
        ("wds_imagenetv2", "imagenetv2"),
        ("wds_imagenet-r", "imagenet_r"),
        ("eurosat-rgb-2.0.0", "eurosat"),
        ("imagenette", None),
        ("birds", None),
    ],
)
def test_sets_are_known_by_their_names(name, key):
    assert known_set(name) == key


def results(top1: float, *, images: float = 50_000) -> list[Result]:
    return [
        Result("imagenet", "random", None, "top1", 0.001),
        Result("imagenet", "name", None, "top1", top1, n=int(images)),
        Result("imagenet", "name", None, "per_class", 0.3, n=int(images)),
        Result("imagenet", "description", 1.0, "top1", 0.9, n=int(images)),
        Result("imagenet", "dataset", None, "images", images),
        Result("pets", "name", None, "top1", 0.3),
        Result("pets", "name", None, "per_class", 0.2),
        Result("birds", "name", None, "top1", 0.3),
    ]


def model(top1: float) -> PublishedModel:
    values = {("imagenet", "name", "top1"): top1, ("oxford_pets", "name", "per_class"): 0.25}
    return PublishedModel("Small/seen", values)


def test_measured_values_stand_beside_the_published_ones_of_their_metric():
    found = beside_published(results(0.683), model(0.6834))
    assert found == [
        Beside("imagenet", "imagenet", "name", "top1", 0.683, 0.6834, 50_000, 50_000, None, 1_000),
        Beside("pets", "oxford_pets", "name", "per_class", 0.2, 0.25, None, 3_669, None, 37),
    ]
    assert found[0].difference == pytest.approx(-0.04)
    table = published_table(found, model(0.6834))
    assert table.rows == (
        ("imagenet", "name, top-1", "50,000", "68.30", "68.34", "-0.04"),
        ("pets", "name, mean per class", "?", "20.00", "25.00", "-5.00"),
    )


def test_a_set_of_another_size_is_marked():
    found = beside_published(results(0.5, images=1_000), model(0.5))
    assert published_table(found, model(0.5)).rows[0][2] == "1,000 (published: 50,000)"
    failure = golden_failure(found, tolerance=0.2)
    assert failure is not None
    assert "has 1,000 images" in failure


def test_another_number_of_classes_is_marked_with_one_footnote():
    own = [*results(0.6834), Result("imagenet", "dataset", None, "classes", 1_000.0)]
    assert "*" not in str(published_table(beside_published(own, model(0.6834)), model(0.6834)))
    fewer = [*results(0.6834), Result("imagenet", "dataset", None, "classes", 998.0)]
    fewer += [Result("imagenet", "name", None, "top5", 0.9)]
    known = PublishedModel("x", {**model(0.6834).values, ("imagenet", "name", "top5"): 0.9})
    found = beside_published(fewer, known)
    table = published_table(found, known)
    assert [row[0] for row in table.rows] == ["imagenet *", "pets", "imagenet *"]
    assert table.meaning.count("imagenet has 998, published are 1,000") == 1
    assert "among 1,000" in str(golden_failure(found, tolerance=0.2))


def test_numbers_of_classes_are_those_of_the_lists_of_clip_benchmark():
    lists = SHARED / "data" / "class_text.zip"
    if not lists.exists():
        pytest.skip("needs ../shared/data/class_text.zip")
    with zipfile.ZipFile(lists) as packed:
        names = json.loads(packed.read("class_text/clip_benchmark_en_classnames.json"))
    counted = {known_set(name): len(of) for name, of in names.items() if known_set(name)}
    assert {"imagenet", "caltech101", "flowers102", "gtsrb", "country211"} <= counted.keys()
    for key, count in counted.items():
        assert SETS[key].classes == count, key


@pytest.mark.parametrize(
    ("measured", "tolerance", "passes"),
    [
        (0.6834, 0.0, True),
        (0.6854, 0.2, True),
        (0.6814, 0.2, True),
        (0.6855, 0.2, False),
        (0.68, 0.2, False),
        (0.68, 0.5, True),
    ],
)
def test_golden_is_imagenet_within_the_tolerance(measured, tolerance, passes):
    found = beside_published(results(measured), model(0.6834))
    assert (golden_failure(found, tolerance=tolerance) is None) is passes


def test_golden_fails_where_the_number_of_images_is_unknown():
    found = beside_published(results(0.6834)[:4], model(0.6834))  # without the record of images
    assert "not known how many images" in str(golden_failure(found, tolerance=0.2))


def test_golden_names_what_the_cause_may_be():
    failure = str(golden_failure(beside_published(results(0.5), model(0.6834)), tolerance=0.2))
    assert "--templates=imagenet" in failure
    assert "--classes=FILE" in failure


def test_golden_without_imagenet_is_a_mistake():
    with pytest.raises(ValueError, match="was not measured"):
        golden_failure(beside_published(results(0.5)[5:], model(0.5)), tolerance=0.2)
