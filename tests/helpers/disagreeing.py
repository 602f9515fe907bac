"""A process for tests that sees things otherwise than process 0, as another machine may.

disagreeing.py run COMMANDS ARGUMENTS: commands after each other, given as JSON, [["train", ...],
["evaluate", ...]]; the first gets ARGUMENTS too, how to join. In the trainer process 0 measures the
same score at every evaluation, and process 1 one that is the last bit higher each time.
disagreeing.py agree FOLDER ARGUMENTS: what the two agree on, as JSON lines.
"""

import dataclasses
import importlib
import json
import math
import os
import pathlib
import sys
import threading
import time

from grain_jax import buckets
from grain_jax.parallel import processes
from grain_jax.trainer import evaluation
from grain_jax.training import checkpoint

FIRST = "--process_id=0" in sys.argv
ENDED = "== exit status "
METRIC = "validation/description/alpha0"


def disagree_on_scores():
    measure, scores = evaluation.evaluate, [0.5]

    def evaluate(encoder, config, *, final, **options):
        results = measure(encoder, config, final=final, **options)
        if not final:
            results = [
                dataclasses.replace(result, value=scores[0]) if result.key == METRIC else result
                for result in results
            ]
            if not FIRST:
                scores[0] = math.nextafter(scores[0], 1.0)
        return results

    evaluation.evaluate = evaluate


def run_all(commands, joined):
    """The status of the last; a line with its status stands after the output of each."""
    for name, *arguments in commands:
        status = importlib.import_module(f"grain_jax.{name}").main([*arguments, *joined])
        sys.stdout.flush()
        print(f"\n{ENDED}{status}", file=sys.stderr, flush=True)
        joined = ()
    return status


def agree(folder, arguments):
    options = dict(argument.removeprefix("--").split("=") for argument in arguments)
    processes.join_processes(
        processes.ProcessOptions(
            coordinator=options["coordinator"],
            num_processes=int(options["num_processes"]),
            process_id=int(options["process_id"]),
        )
    )
    own = 0.1 if FIRST else math.nextafter(0.1, 1.0)
    said = {"number": processes.from_first(own), "none": processes.from_first(None)}
    said["infinite"] = processes.from_first(-math.inf if FIRST else 1.0) == -math.inf
    said["yes"] = processes.from_first(FIRST)
    # Process 0 has saved; the file system shows it here a second later.
    whole = pathlib.Path(folder, "0" if FIRST else "1", "checkpoints", "7", "_CHECKPOINT_METADATA")
    whole.parent.mkdir(parents=True)

    def show():
        time.sleep(0 if FIRST else 1)
        whole.touch()

    showing = threading.Thread(target=show)
    showing.start()
    if FIRST:
        showing.join()
    said["latest"] = checkpoint.latest_in_all(whole.parents[2])
    for name, failing in (("first", FIRST), ("second", not FIRST), ("neither", False)):
        try:
            with processes.errors_in_all(), processes.errors_in_all():  # nested: the outer counts
                if failing:
                    kind = buckets.Unreachable if name == "second" else OSError
                    raise kind(f"the {name} cannot read")
            said[name] = None
        except ValueError as error:
            said[name] = [str(error), error.elsewhere, error.passes]
    # What one process alone meets ends it; the other, which waits for it, must not wait for ever.
    print(json.dumps(said), flush=True)
    try:
        if not FIRST:
            raise RuntimeError("something nobody expected")
        processes.from_first(0)
    except Exception as error:
        processes.leave_over(error)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "agree":
        agree(rest[0], rest[1:])
        os._exit(0)
    disagree_on_scores()
    sys.exit(run_all(json.loads(rest[0]), rest[1:]))
