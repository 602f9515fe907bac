"""Templates that come with the package, by name."""

import hashlib

import pytest

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.templates import TEMPLATE_LISTS, read_templates, template_list
from grain_jax.evaluation.details import describe_set
from grain_jax.evaluation.suite_file import Suite

# Of the published lists, a template a line; of the official one with its double space made one.
SHA256 = {
    "imagenet": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",
    "official": "2d2565d0cb12c608aec488ac2bd11fed38c49b3963673b523aa4bddffdf3815f",
}


def test_lists_are_those_that_were_published():
    for name, sha256 in SHA256.items():
        assert hashlib.sha256("\n".join(template_list(name)).encode()).hexdigest() == sha256
    official = template_list("official")
    assert len(official) == len(set(official)) == 46
    assert sum("a type of bird" in one for one in official) == 23
    assert len(template_list("imagenet")) == 80
    assert template_list("single") == ("a photo of a {}.",)


@pytest.fixture
def images(tmp_path):
    for label in ("owl", "jay"):
        (tmp_path / "birds" / label).mkdir(parents=True)
        (tmp_path / "birds" / label / "0.png").write_bytes(b"not read")
    return tmp_path / "birds"


@pytest.mark.parametrize("name", TEMPLATE_LISTS)
def test_a_set_takes_a_list_by_its_name(images, name):
    (images / "templates.txt").write_text("own {}")
    dataset = load_zero_shot(images, templates=name, note=lambda _: None)
    assert dataset.templates == template_list(name)
    described = describe_set(dataset)["templates"]
    assert (described["file"], described["file_sha256"]) == (name, None)
    assert load_zero_shot(images, note=lambda _: None).templates == ("own {}",)
    suite = Suite(name="mine", folder=images.parent)
    assert (suite.text(name), suite.text("own.txt")) == (name, str(images.parent / "own.txt"))


def test_an_unknown_name_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no file 'offical'.*single, imagenet, official"):
        read_templates("offical")
    with pytest.raises(ValueError, match=r"no file 'x\.txt'\.$"):
        read_templates("x.txt")
    (tmp_path / "own.txt").write_text("a {c}\n")
    assert read_templates(str(tmp_path / "own.txt")) == ("a {}",)
