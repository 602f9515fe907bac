"""A training process for tests: everything of `python -m grain_jax.train` but the last evaluation.

TRAIN_KILL_AT=N in the environment: SIGKILL to itself right after the log line of step N.
"""

import os
import signal
import sys

import grain_jax.train
from grain_jax.training.metrics import MetricsLog

write = MetricsLog.write


def write_and_die(self, step, values):
    write(self, step, values)
    if step >= int(os.environ["TRAIN_KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


if "TRAIN_KILL_AT" in os.environ:
    MetricsLog.write = write_and_die
grain_jax.train.finish = lambda *run: None
sys.exit(grain_jax.train.main())
