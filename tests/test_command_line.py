"""Options that all commands read alike."""

import pytest

from grain_jax import evaluate, export, predict, prepare
from grain_jax.command_line import Parser


@pytest.mark.parametrize(
    ("main", "twice"),
    [
        (evaluate.main, ["--checkpoint=a", "--checkpoint=b"]),
        (evaluate.main, ["--checkpoint=a", "--step=1", "--step=2"]),
        (predict.main, ["x.png", "--checkpoint=a", "--labels=a", "--labels=b"]),
        (predict.main, ["x.png", "--checkpoint=a", "--batch_size=1", "--batch-size=2"]),
        (export.main, ["--checkpoint=a", "--to=huggingface", "--out=a", "--out", "b"]),
        (prepare.main, ["--from=jsonl", "--input=a", "--input=b"]),
        (prepare.main, ["--from=jsonl", "--from=jsonl"]),
    ],
)
def test_a_value_that_is_given_twice_is_refused(main, twice, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(twice)
    assert stopped.value.code == 2
    assert "is given twice" in capsys.readouterr().err


def test_each_command_line_is_read_afresh():
    for value in ("a", "b"):
        parser = Parser("some", "Text.")
        parser.add_argument("--one")
        parser.add_argument("--flag", action="store_true")
        options = parser.parse_args([f"--one={value}", "--flag", "--flag"])
        assert (options.one, options.flag) == (value, True)
        assert parser.prog == "python -m grain_jax.some"
