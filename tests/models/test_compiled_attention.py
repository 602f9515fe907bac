"""Attention as the TPU compiler makes it, which needs no TPU: what stays in memory."""

import json
import subprocess
import sys

import pytest
from places import HELPERS
from training_process import environment


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "xla"])
@pytest.mark.parametrize("tower", ["vision", "stream"])
def test_no_attention_weights_in_memory(tower, kind):
    """In a process of its own: libtpu can be loaded once."""
    pytest.importorskip("libtpu")
    command = [sys.executable, str(HELPERS / "compiled_attention.py"), tower, kind]
    printed = subprocess.run(
        command, check=True, env=environment(), capture_output=True, text=True
    ).stdout
    found = json.loads(printed.splitlines()[-1])
    if kind == "xla":  # or what the other one looks for could not be found
        assert found["square"]
        assert found["kernels"] == 0
    else:
        assert found["square"] == []
        assert found["kernels"] >= 2  # forward, perhaps again, and backward
