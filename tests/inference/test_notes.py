"""Notes to whoever calls the package from Python."""

import warnings
from pathlib import Path

import pytest

from grain_jax.inference.notes import warn_caller


def test_a_warning_points_at_the_line_that_called_the_package():
    from grain_jax.inference import progress_bar  # any module of the package

    inside = compile("def call(note):\n    note('cut')\n", progress_bar.__file__, "exec")
    scope: dict = {}
    exec(inside, scope)
    for call in (warn_caller, lambda text: scope["call"](warn_caller)):
        with pytest.warns(UserWarning, match="cut") as found:
            call("cut")
        assert Path(found[0].filename) == Path(__file__)


def test_every_line_that_leads_to_one_is_warned_once():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(2):
            warn_caller("cut")
        warn_caller("cut")
    assert [one.filename for one in found] == [__file__, __file__]
