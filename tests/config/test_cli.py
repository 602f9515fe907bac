"""What the command line refuses, and how it says so."""

import dataclasses
import re

import pytest
from places import REPOSITORY

from grain_jax.config import TrainConfig
from grain_jax.config.bounds import leaves
from grain_jax.config.cli import (
    config_from_json,
    config_to_json,
    differences,
    load_config,
)
from grain_jax.data.synthetic_birds import demo
from grain_jax.train import NotParsed, parse_options

CONFIGS = REPOSITORY / "configs"


def parse(*arguments):
    return parse_options(arguments).config


def test_without_arguments_the_demo():
    assert parse() == demo.get_config()


@pytest.mark.parametrize("prefix", ["--", "--config."])
def test_a_file_with_a_variant_and_overrides_in_any_order(prefix):
    config = parse(
        f"{prefix}optim.learning_rate=3e-4",
        "--noconfig.logging.tensorboard" if "config" in prefix else "--logging.tensorboard=false",
        f"--config={CONFIGS / 'grain_vitb16_cc12m.py'}:faithful",
        f"{prefix}epochs",
        "3",
        f"{prefix}evaluation.alphas=(1,0)",
        *([f"{prefix}data.mean=(0.5,0.5,0.5)"] if "c" in prefix else ["--data.mean", *["0.5"] * 3]),
    )
    assert config.optim.learning_rate == 3e-4
    assert config.loss.variant == "official"
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
    for path in ("evaluation.zero_shot", "optim.lr_multipliers"):
        with pytest.raises(ValueError, match=re.escape(f"--{path}={given}: expected")) as error:
            parse(f"--config.{path}={given}")
        message = str(error.value)
        assert "\n" not in message
        if given == "/data/a,b":  # both as they can be typed
            assert f"""--{path}='("/data/a","b",)'""" in message
            assert f"""--{path}='("/data/a,b",)'""" in message


def test_no_value_is_dropped_without_a_word(capsys):
    given = (
        *("--config.seed=1", "--seed=1", "--config.epochs", "3", "--epochs=4"),
        *("--logging.tensorboard", "--noconfig.logging.tensorboard", "--workdir=a"),
        *("--config.optim.lr=1e-3", "--optim.learning_rate=2e-3"),
    )
    config = parse(*given)
    notes = capsys.readouterr().err.splitlines()
    assert (config.seed, config.epochs, config.optim.learning_rate) == (1, 4.0, 2e-3)
    assert not config.logging.tensorboard
    assert [note.partition(" is given")[0] for note in notes] == [
        "Note: --epochs",
        "Note: --logging.tensorboard",
        "Note: --optim.learning_rate",
    ]
    assert notes[0].endswith("twice, '3' and '4': the last one counts.")
    with pytest.raises(NotParsed) as ended:
        parse("--workdir=a", "--workdir", "b")
    assert ended.value.status == 2
    assert "--workdir is given twice" in capsys.readouterr().err
    for twice in (
        ["--config=demo", "--config=demo:clip"],
        ["--config", "demo", "--config", "demo:clip"],
    ):
        with pytest.raises(ValueError, match="is given twice"):
            parse(*twice)
    with pytest.raises(ValueError, match=r"data\.mixture is given twice"):
        parse("--data.mixture=a=0.7", "--data.mixture=b=0.3")  # b alone would be trained on
    assert parse("--workdir=a", "--workdir=a") == demo.get_config()


def test_the_learning_rate_has_a_short_name():
    assert parse("--config.optim.lr=3e-4").optim.learning_rate == 3e-4
    assert parse("--config.optim.lr", "2e-4").optim.learning_rate == 2e-4


@pytest.mark.parametrize("prefix", ["--", "--config."])
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.leaning_rate=3", "Did you mean optim.learning_rate?"),
        ("model.vison.width=3", "Did you mean model.vision.width?"),
        ("optim.foo=1", "It has: learning_rate, warmup_epochs"),
        ("optim=1", "is a section"),
        ("logging.tensorboard=maybe", "expected true or false"),
        ("model.decoder.memory_position=sincos", "never improved a result"),
        ("data.world.seeed=3", "Did you mean data.synthetic_birds.seed?"),
        ("stop_at_step=7", "max_steps_this_run"),
    ],
)
def test_a_mistaken_setting_is_refused_with_the_nearest(prefix, argument, message):
    if argument in ("optim=1", "stop_at_step=7"):  # without a dot another option
        prefix = "--config."
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(prefix + argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.lr=3", "Did you mean optim.learning_rate?"),
        ("--config.learning_rate=3", "Did you mean optim.learning_rate?"),
        ("--noconfig.logging.tensorbord", "Did you mean logging.tensorboard?"),
        ("--config=nowhere/x.py", "there is no file 'nowhere/x.py'"),
        ("--config=demo:hard", "Unknown variant 'hard'"),
        ("--confg=demo:smoke", "Did you mean --config?"),
    ],
)
def test_mistakes_are_refused_in_one_line(argument, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        parse(argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--optim.learning_rate=high", "high"),
        ("--steps=2.5", "2.5"),
        ("--model.type=clop", "clip"),
        ("--workdr=x", "--workdir"),
        ("rubbish", "rubbish"),
    ],
)
def test_what_the_parser_refuses_is_printed(argument, named, capsys):
    with pytest.raises(NotParsed) as ended:
        parse(argument)
    assert ended.value.status == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--check"], True),
        (["--check=true"], True),
        (["-check"], True),
        (["--check=false"], False),
        (["--nocheck"], False),
        ([], False),
    ],
)
def test_a_switch_is_spelled_as_before(words, expected):
    assert parse_options(words).check is expected


def test_help_shows_every_setting_with_its_default(capsys):
    with pytest.raises(NotParsed) as ended:
        parse("--help")
    assert ended.value.status == 0
    printed = capsys.readouterr().out
    for path, (value, _) in leaves(demo.get_config()).items():
        assert f"--{path} " in printed
        if isinstance(value, str) and value:
            assert value in printed


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
