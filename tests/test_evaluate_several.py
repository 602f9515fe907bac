import pytest

from grain_jax.evaluate_several import one_a_checkpoint


@pytest.mark.parametrize(
    "given",
    [
        ["--checkpoint=a", "--data=x", "--checkpoint=b"],
        ["--checkpoint", "a", "--data=x", "--checkpoint", "b"],
        ["--data=x", "--checkpoint=a,b"],
    ],
)
def test_each_checkpoint_gets_the_other_arguments(given):
    assert one_a_checkpoint(given) == [
        ["--checkpoint=a", "--data=x"],
        ["--checkpoint=b", "--data=x"],
    ]


@pytest.mark.parametrize(
    "given",
    [[], ["--data=x"], ["--checkpoint=a"], ["--checkpoint"], ["--data=x,y", "--checkpoint=a"]],
)
def test_one_or_none_is_left_as_it_is(given):
    assert one_a_checkpoint(given) == [given]


def test_a_path_may_have_a_comma(tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    assert one_a_checkpoint([f"--checkpoint={folder}"]) == [[f"--checkpoint={folder}"]]


def test_a_checkpoint_is_given_once():
    with pytest.raises(ValueError, match="names 'a' twice"):
        one_a_checkpoint(["--checkpoint=a", "--checkpoint=b,a"])
