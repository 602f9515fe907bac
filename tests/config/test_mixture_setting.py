"""`data.mixture`: how it is written, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings import changed, records_config

from grain_jax.config.cli import config_from_json, config_to_json, read_settings
from grain_jax.config.mixture import fractions, parse_mixture
from grain_jax.config.validation import problems

MIXED = {"data__data_dir": "", "data__eval_split": ""}


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.decimals(min_value="1e-12", max_value="1e12", allow_nan=False, allow_infinity=False),
)
def test_every_folder_and_every_positive_number_is_read_as_written(folder, number):
    (only,) = parse_mixture([f"{folder}={number}"])
    assert only.data_dir == folder
    assert only.weight == Fraction(number)


def test_fractions_are_those_of_the_numbers_in_decimal():
    sets = parse_mixture(["gs://bucket/a=b/c=0.7", "d=0.2", "e=.1"])
    assert [each.data_dir for each in sets] == ["gs://bucket/a=b/c", "d", "e"]
    assert [each.weight for each in sets] == [Fraction(7, 10), Fraction(1, 5), Fraction(1, 10)]
    assert fractions(sets) == [0.7, 0.2, 0.1]
    assert fractions(parse_mixture(["a=7", "b=2", "c=1"])) == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    "entry", ["a", "a=", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1e999", "", "a=b"]
)
def test_what_is_not_a_folder_and_a_weight_is_refused_by_its_entry(entry):
    with pytest.raises(ValueError, match=r"^data\.mixture: given .*expected a folder and a") as e:
        parse_mixture(["good=1", entry])
    assert repr(entry) in str(e.value)


def test_one_folder_by_two_paths_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    for again in ("set/", "./set", "link", str(tmp_path / "set"), "x/../set"):
        with pytest.raises(ValueError, match="are the same folder; give it once"):
            parse_mixture(["set=1", f"{again}=2"])
    with pytest.raises(ValueError, match="are the same folder"):
        parse_mixture(["gs://bucket/set=1", "gs://bucket/set/=1"])
    assert len(parse_mixture(["gs://bucket/set=1", "set=1", "gs://other/set=1"])) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__mixture": ("a=0.7", "b=x")}, "'b=x'"),
        ({"data__mixture": ("a=1", "a/=1")}, "same folder"),
        # The default is to hold out the split "validation", of a folder that is not named.
        ({"data__eval_split": "validation", "data__mixture": ("a=1",)}, "--data.data_dir=DIR"),
        ({"data__data_dir": "c", "data__mixture": ("a=1", "b=2")}, "data.data_dir = 'c'"),
        (
            {"data__data_dir": "./b", "data__eval_split": "train", "data__mixture": ("a=1", "b=2")},
            "nothing would be held out",
        ),
    ],
)
def test_a_mixture_that_cannot_work_is_refused_once(changes, message):
    (found,) = problems(changed(records_config(), **(MIXED | changes)))
    assert message in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__data_dir": "a", "data__eval_split": "validation"},
        {"data__data_dir": "c", "data__eval_split": "train"},
    ],
)
def test_a_mixture_that_works_is_not_refused(changes):
    mixture = {"data__mixture": ("a=0.7", "b=0.3")}
    assert problems(changed(records_config(), **(MIXED | mixture | changes))) == []


def test_the_command_line_and_json_take_it():
    written = """--data.mixture=("gs://a=1/x=0.7","b=0.3")"""
    _, words = read_settings([written])
    assert words == ["--data.mixture", "gs://a=1/x=0.7", "b=0.3"]
    config = changed(records_config(), data__mixture=("a=0.7", "b=0.3"))
    assert config_from_json(config_to_json(config)) == config
