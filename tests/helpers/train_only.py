"""A training process for tests: everything of `python -m grain_jax.train` but the last evaluation.

In the environment, right after the log line of step N: TRAIN_KILL_AT=N, SIGKILL to itself;
TRAIN_HANG_AT=N, no further step.
"""

import os
import signal
import sys
import threading

import grain_jax.train
from grain_jax.training.metrics import MetricsLog

write = MetricsLog.write


def write_and_die(self, step, values):
    write(self, step, values)
    if step >= int(os.environ["TRAIN_KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


def write_and_hang(self, step, values):
    write(self, step, values)
    if step >= int(os.environ["TRAIN_HANG_AT"]):
        threading.Event().wait()


if "TRAIN_KILL_AT" in os.environ:
    MetricsLog.write = write_and_die
if "TRAIN_HANG_AT" in os.environ:
    MetricsLog.write = write_and_hang
grain_jax.train.finish = lambda *run: None
sys.exit(grain_jax.train.main())
