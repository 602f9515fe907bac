"""XLA's alarm about slow compilation is replaced; whatever else C++ code says arrives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from places import REPOSITORY

from grain_jax.slow_compile import INSTEAD, without_alarm

ALARM = b"""\
2026-11-26 01:02:03.456 E external/xla/xla/service/slow_operation_alarm.cc:73] 
********************************
[Compiling module jit_step] Very slow compile? If you want to file a bug, run with envvar \
XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
2026-11-26 01:03:03.456 E external/xla/xla/service/slow_operation_alarm.cc:140] The operation \
took 3m0.1s

********************************
[Compiling module jit_step] Very slow compile? If you want to file a bug, run with envvar \
XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
"""
PROGRAM = """
import os, sys
from grain_jax.slow_compile import hide_alarm
hide_alarm()
print("by Python", file=sys.stderr)
os.write(2, b"before\\n" + {alarm!r} + b"fatal: why\\n" + b"without an end")
os.abort()
"""


def test_only_the_alarm_is_left_out():
    others = [b"E nccl.cc:1] broken\n", b"****\n", b"\n", b"after\n"]
    lines = [others[0], *ALARM.splitlines(keepends=True), *others[3:], *others[1:3]]
    assert list(without_alarm(lines)) == [others[0], INSTEAD, *others[3:], *others[1:3]]
    assert list(without_alarm(others)) == others


def test_what_a_process_says_before_it_aborts_arrives(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(alarm=ALARM)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert result.returncode == -signal.SIGABRT
    lines = result.stderr.splitlines(keepends=True)
    assert sorted(lines) == sorted(
        [b"by Python\n", b"before\n", INSTEAD, b"fatal: why\n", b"without an end"]
    )
