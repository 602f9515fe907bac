"""What the command line refuses, and how it says so."""

import dataclasses
import re

import pytest
from absl import flags
from places import REPOSITORY

from grain_jax.config import TrainConfig
from grain_jax.config.cli import (
    config_from_json,
    config_to_json,
    differences,
    load_config,
    parse_arguments,
)
from grain_jax.data.synthetic_birds import demo

CONFIGS = REPOSITORY / "configs"


def parse(*arguments):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    return parse_arguments(arguments, values)


def test_without_arguments_the_demo():
    assert parse() == demo.get_config()


def test_a_file_with_a_variant_and_overrides_in_any_order():
    config = parse(
        "--config.optim.learning_rate=3e-4",
        "--noconfig.logging.tensorboard",
        f"--config={CONFIGS / 'grain_vitb16_cc12m.py'}:faithful",
        "--config.epochs",
        "3",
        "--config.evaluation.alphas=(1,0)",
        "--config.data.mean=(0.5,0.5,0.5)",
    )
    assert config.optim.learning_rate == 3e-4
    assert config.loss.empty_batch == "nan"
    assert not config.logging.tensorboard
    assert (config.epochs, type(config.epochs)) == (3.0, float)
    assert config.evaluation.alphas == (1.0, 0.0)
    assert config.data.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/data/pets", ("/data/pets",)),
        ("/data/a set (1)", ("/data/a set (1)",)),  # blanks and brackets of a name
        ("2024", ("2024",)),
        ("'/data/flowers,old'", ("/data/flowers,old",)),
        ('("/data/flowers,old",)', ("/data/flowers,old",)),
        ('("/data/flowers,old", "pets")', ("/data/flowers,old", "pets")),
        ('["a","b"]', ("a", "b")),
        ("()", ()),
        ("", ()),
    ],
)
def test_a_list_of_texts_is_read_as_typed(given, expected):
    for path in ("zero_shot", "zero_shot_during_training"):
        setting = f"--config.evaluation.{path}"
        for arguments in ([f"{setting}={given}"], [setting, given]):
            config = parse(*arguments, "--config.seed=3")
            assert (getattr(config.evaluation, path), config.seed) == (expected, 3)


@pytest.mark.parametrize(
    "given", ["a,b", "/data/a,b", "(a,b)", '("a",b)', '("a",3)', '("a"', "{}x,"]
)
def test_a_comma_that_may_mean_two_things_is_refused_with_both(given):
    for path in ("evaluation.zero_shot", "optim.rate_factors"):
        with pytest.raises(
            ValueError, match=re.escape(f"--config.{path}={given}: needed")
        ) as error:
            parse(f"--config.{path}={given}")
        message = str(error.value)
        assert "\n" not in message
        if given == "/data/a,b":  # both as they can be typed
            assert f"""--config.{path}='("/data/a","b",)'""" in message
            assert f"""--config.{path}='("/data/a,b",)'""" in message


def test_no_value_is_dropped_without_a_word(tmp_path):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    notes: list[str] = []
    given = (
        *("--config.seed=1", "--config.seed=1", "--config.epochs", "3", "--config.epochs=4"),
        *("--config.logging.tensorboard", "--noconfig.logging.tensorboard", "--workdir=a"),
        *("--config.optim.lr=1e-3", "--config.optim.learning_rate=2e-3"),
    )
    config = parse_arguments(given, values, note=notes.append)
    assert (config.seed, config.epochs, config.optim.learning_rate) == (1, 4.0, 2e-3)
    assert [note.partition(" is given")[0] for note in notes] == [
        "--config.epochs",
        "--config.logging.tensorboard",
        "--config.optim.learning_rate",
    ]
    assert notes[0].endswith("twice, '3' and '4': the last one counts")
    for twice in (
        ["--workdir=a", "--workdir", "b"],
        ["--config=demo", "--config=demo:clip"],
        ["--config", "demo", "--config", "demo:clip"],
    ):
        with pytest.raises(ValueError, match="is given twice"):
            parse(*twice)
    assert parse("--workdir=a", "--workdir=a") == demo.get_config()


def test_the_learning_rate_has_a_short_name():
    assert parse("--config.optim.lr=3e-4").optim.learning_rate == 3e-4
    assert parse("--config.optim.lr", "2e-4").optim.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.lr=3", "Did you mean optim.learning_rate?"),
        ("--config.optim.leaning_rate=3", "Did you mean optim.learning_rate?"),
        ("--config.learning_rate=3", "Did you mean optim.learning_rate?"),
        ("--config.model.vison.width=3", "Did you mean model.vision.width?"),
        ("--noconfig.logging.tensorbord", "Did you mean logging.tensorboard?"),
        ("--config.optim.foo=1", "It has: learning_rate, warmup_epochs"),
        ("--config.optim=1", "is a section"),
        ("--config.optim.learning_rate=high", "could not convert string to float"),
        ("--config.steps=2.5", "invalid literal for int"),
        ("--config.logging.tensorboard=maybe", "Non-boolean"),
        ("--config=nowhere/x.py", "there is no file 'nowhere/x.py'"),
        ("--config=demo:hard", "Unknown variant 'hard'"),
        ("--workdr=x", "Did you mean: workdir"),
        ("rubbish", "Unexpected argument 'rubbish'"),
    ],
)
def test_mistakes_are_refused_with_the_nearest_valid_name(argument, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", "no function get_config"), ("def get_config(v): return 3", "returned a int")],
)
def test_a_file_that_gives_no_config_is_refused(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path / "c.py"))


def test_json_there_and_back():
    for config in (TrainConfig(), demo.get_config("clip")):
        config.evaluation.zero_shot = ("a", "b")
        assert config_from_json(config_to_json(config)) == config


def test_json_of_another_version_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'optim.learning_rat'.*Did you mean learning_rate"):
        config_from_json('{"optim": {"learning_rat": 1.0}}')


def test_json_lacking_a_new_field_takes_its_default():
    assert config_from_json("{}") == TrainConfig()


def test_differences_name_every_setting():
    new = TrainConfig(seed=3)
    new.optim = dataclasses.replace(new.optim, eps=1e-6)
    assert differences(TrainConfig(), new) == {"seed": (0, 3), "optim.eps": (1e-8, 1e-6)}
