"""The step of another code in a process of its own: what it answers, and how it fails."""

import os
from functools import partial

import pytest

from grain_jax.benchmarking.compiled_step import OutOfMemoryError
from grain_jax.benchmarking.memory import peak_bytes_of_process
from grain_jax.benchmarking.peer_process import peer_process
from tests.helpers import peers


def test_steps_run_in_the_other_process_and_are_waited_for():
    with peer_process("counting", peers.Counting) as peer:
        assert (peer.name, peer.differences) == ("counting", ("counts",))
        assert peer.parameters != os.getpid()  # it gives the number of its process
        for _ in range(3):
            peer.run()
        assert peer.wait() == 3
        peer.run()
        assert peer.wait() == peer.wait() == 4  # nothing was started in between
        # Of the process, as nothing is known of a device.
        assert (peer.peak_bytes() is None) == (peak_bytes_of_process() is None)
    with pytest.raises(OSError, match="closed"):
        peer.wait()


@pytest.mark.slow
def test_memory_of_the_device_goes_before_that_of_the_process():
    with peer_process("counting", partial(peers.Counting, peak=5)) as peer:
        assert peer.peak_bytes() == 5


def one_step(build):
    with peer_process("counting", build) as peer:
        peer.run()
        peer.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (peers.missing, ValueError, "needs abacus"),
        (peers.Dying, ValueError, "process of counting ended with status 41"),
        (peers.Large, OutOfMemoryError, "counting, by torch: .*can't allocate memory"),
    ],
)
def test_what_ends_the_other_process_is_raised_here(build, error, message):
    with pytest.raises(error, match=message):
        one_step(build)


def test_the_peak_is_that_of_the_system(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmPeak:\t 9999 kB\nVmHWM:\t 1234 kB\n")
    assert peak_bytes_of_process(status) == 1234 * 1024
    assert peak_bytes_of_process(tmp_path / "none") is None
