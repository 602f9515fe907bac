"""A profiler trace of some steps, and one page on where their time went.

The times are those of the trace: of each operation as the backend reports it, on a CPU of each
thread. The compiled program says what kind each operation is, and which part of the step it
belongs to.
"""

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from grain_jax.benchmarking.hlo import COLLECTIVES

PAGE = "where_the_step_goes.md"
LISTED = 15  # operations
DEFINED = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
OP_NAME = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
# They only hold others, which the trace has too.
HOLDERS = {"while", "call", "conditional", "tuple", "get-tuple-element", "parameter", "async-start"}
COPIES = {"copy", "transpose", "copy-start", "copy-done", "reshape", "pad", "slice", "concatenate"}
LOOKUPS = {"gather", "scatter", "dynamic-slice", "dynamic-update-slice"}


@dataclass(frozen=True)
class Operation:
    """One instruction that a backend runs as a whole."""

    kind: str  # in words, as "matrix products"
    part: str  # of the step, as "image tower"


@dataclass(frozen=True)
class Spent:
    """Times of the operations of some traced steps."""

    seconds: Mapping[str, float]  # of each operation by name, all steps and threads together
    counts: Mapping[str, int]


def write_profile(folder: Path, run: Callable[[], Any], *, text: str, num_steps: int) -> Path:
    """Traces `run`, which does `num_steps` steps of the compiled program `text` and waits for them.

    Returns the page that is written beside the trace. Raises ValueError where the trace has no
    operation of the program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.rglob("*.xplane.pb"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # each call of Python is as long as an operation
    started = time.perf_counter()
    with jax.profiler.trace(str(folder), profiler_options=options):
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
    operations = read_operations(text)
    spent = read_trace(sorted(set(folder.rglob("*.xplane.pb")) - before), operations)
    if not spent.seconds:
        raise ValueError(
            f"The trace in {folder} has no operation of the compiled step, so that there is no "
            "page to write; the trace itself opens in Perfetto or TensorBoard."
        )
    path = folder / PAGE
    path.write_text(
        page(spent, operations, step_seconds=seconds / num_steps, num_steps=num_steps),
        encoding="utf-8",
    )
    return path


def read_operations(text: str) -> dict[str, Operation]:
    """Instructions of a compiled program that may be run as a whole, by name."""
    bodies: dict[str, list[str]] = defaultdict(list)
    computation = ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            computation = found[1]
        elif computation and DEFINED.match(line):
            bodies[computation].append(line)
    opcodes = {
        name: {found[2] for line in body if (found := DEFINED.match(line))}
        for name, body in bodies.items()
    }
    operations = {}
    for body in bodies.values():
        for line in body:
            found = DEFINED.match(line)
            assert found is not None  # as above
            name, opcode = found.groups()
            if opcode in HOLDERS:
                continue
            called = CALLS.search(line)
            inside = opcodes.get(called[1], set()) if called else set()
            target = TARGET.search(line)
            named = OP_NAME.search(line)
            operations[name] = Operation(
                kind=_kind(
                    opcode,
                    inside,
                    target[1] if target else "",
                    kernel=f"{name} {named[1] if named else ''}",
                ),
                part=part_of(named[1] if named else ""),
            )
    return operations


def _kind(opcode: str, inside: set[str], target: str, *, kernel: str) -> str:
    """`kernel`: where a kernel of this project has its name, as all have the same target."""
    done = opcode.removesuffix("-start").removesuffix("-done")
    if done in COLLECTIVES or inside & set(COLLECTIVES):
        return "collectives"
    own = opcode == "custom-call" and re.search("attention_(forward|backward)", kernel)
    if own or re.search("fmha|flash|attention", target, re.IGNORECASE):
        return "fused attention"
    products = {"dot", "convolution"}
    if opcode in products or inside & products or re.search("gemm|matmul|dot|conv", target):
        return "matrix products"
    held = {opcode} | inside
    for kind, opcodes in (
        ("sorting", {"sort", "custom-call"} if "TopK" in target else {"sort"}),
        ("gathers and scatters", {"gather", "scatter"}),
        ("reductions (norms, softmax, sums)", {"reduce", "reduce-window"}),
        ("slices of stacked arrays", LOOKUPS),
        ("random numbers", {"rng-bit-generator", "rng"}),
    ):
        if held & opcodes:
            return kind
    if opcode == "custom-call":
        return f"custom call {target}"
    moved = COPIES | {"bitcast", "parameter", "constant", "broadcast", "fusion", "tuple"}
    return "copies and layout" if held <= moved else "elementwise"


def part_of(op_name: str) -> str:
    """The part of a training step that an operation comes from, by the name JAX gave it."""
    names = op_name.split("/")
    if any("ImageTextModel" in name for name in names):
        for name, part in (
            ("vision", "image tower"),
            ("decoder", "decoder"),
            ("text", "descriptions" if "_encode_descriptions" in op_name else "captions"),
        ):
            if name in names:
                return part
        return "rest of the model"
    if "jvp(" in op_name:
        return "losses and matching"
    return "optimizer and the rest" if op_name.startswith("jit(") else "not named"


def read_trace(files: Sequence[Path], operations: Mapping[str, Operation]) -> Spent:
    """Times of the operations in profiler files (`*.xplane.pb`)."""
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for file in files:
        for name, took in _events(jax.profiler.ProfileData.from_file(str(file)), operations):
            seconds[name] += took
            counts[name] += 1
    return Spent(seconds, counts)


def _events(data: Any, operations: Mapping[str, Operation]) -> Iterator[tuple[str, float]]:
    """Names and seconds of the events that are operations.

    Where a device has a plane of its own, host planes have only the launches.
    """
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name.lstrip("%").partition(" ")[0]
                if name not in operations:
                    with contextlib.suppress(TypeError, ValueError):
                        name = str(dict(event.stats).get("hlo_op", ""))
                if name in operations:
                    yield name, event.duration_ns / 1e9


def page(
    spent: Spent, operations: Mapping[str, Operation], *, step_seconds: float, num_steps: int
) -> str:
    """One page of markdown; times are of one step."""
    each = {name: seconds / num_steps for name, seconds in spent.seconds.items()}
    total = sum(each.values())
    lines = [
        "# Where the step goes",
        "",
        f"{num_steps} steps were traced: {1e3 * step_seconds:,.1f} ms each, with the profiler on. "
        f"Their operations took {1e3 * total:,.1f} ms a step, those of all threads and devices of "
        "this process together. Columns add up to that. The trace beside this page opens in "
        "Perfetto or TensorBoard.",
        "",
        *_table("kind", _summed(each, lambda name: operations[name].kind), total),
        "",
        *_table("part of the step", _summed(each, lambda name: operations[name].part), total),
        "",
        "| the longest operations | kind | part | times a step | ms | % |",
        "|---|---|---|---|---|---|",
    ]
    longest = sorted(each, key=lambda name: -each[name])[:LISTED]
    for name in longest:
        one = operations[name]
        lines.append(
            f"| `{name}` | {one.kind} | {one.part} | {spent.counts[name] / num_steps:g} "
            f"| {1e3 * each[name]:,.2f} | {each[name] / total:.1%} |"
        )
    rest = total - sum(each[name] for name in longest)
    lines.append(
        f"| {len(each) - len(longest):,} others | | | | {1e3 * rest:,.2f} | {rest / total:.1%} |"
    )
    return "\n".join(lines) + "\n"


def _summed(each: Mapping[str, float], key: Callable[[str], str]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for name, seconds in each.items():
        found[key(name)] += seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _table(title: str, rows: Mapping[str, float], total: float) -> list[str]:
    return [
        f"| {title} | ms | % |",
        "|---|---|---|",
        *(f"| {name} | {1e3 * value:,.2f} | {value / total:.1%} |" for name, value in rows.items()),
    ]
