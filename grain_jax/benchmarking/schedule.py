"""What a device runs one after the other in a compiled step: bytes moved, and estimated cycles.

Read from the text of the compiled program, loops by their turns. Bytes are those of operands and
results in the device's main memory, as they are laid out there (a TPU pads the last two dimensions
to tiles). Cycles are the TPU compiler's own estimates of each operation, which it schedules by: the
best clock there is without the chip. They are not calibrated and leave out collectives and kernels
(custom calls), so they rank programs and do not predict a time.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from grain_jax.benchmarking import hlo

COST = re.compile(r'"cost_estimate":\{"flops":"(\d+)"[^}]*"bytes_accessed":"(\d+)"')
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
NAME = re.compile(r'op_name="([^"]*)"')
CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
OPERANDS = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{([^}]*)\})?")
TILE = re.compile(r"T\((\d+),(\d+)\)")
# They run nothing of their own: the work is in what they call, or it is only a name for a value.
NO_WORK = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
    ]
)
# What a library of NVIDIA's may write besides its results: room, of which the program does not say
# how much is used.
WORKSPACE = re.compile(r", [su]8\[\d+\](?:\{[^}]*\})?\)$")
LIBRARY = re.compile(r'custom_call_target="__cu(?:blas|dnn)')
PRODUCTS = (" convolution(", " dot(")
# Modules of attention that are matrix products like those of any layer.
PROJECTIONS = ("qkv", "query", "key", "value", "out", "dot_general")
PARTS = ("vision", "text", "decoder")


@dataclass(frozen=True)
class Schedule:
    """Of one step on one device."""

    num_bytes: float  # in and out of main memory
    cycles: float | None  # that the compiler estimates; None where it writes none
    by_part: dict[str, dict[str, float]]  # part of the model -> kind of operation -> cycles
    kernels: int  # custom calls, each once, of which the compiler estimates no cycles
    kernel_flops: float = 0.0  # of them, in all turns, as they state their cost
    kernel_bytes: float = 0.0
    unknown_loops: int = 0  # loops that are counted as one turn, as the program does not say


def read_schedule(text: str) -> Schedule:
    """Of the text of a compiled program (`compiled.as_text()`); ValueError where it is none."""
    lines = hlo.computations(text)
    if not lines:
        raise ValueError(f"This is no compiled program as HLO writes it: {text[:80]!r}")
    loops = hlo.loops_of(lines)
    num_bytes, cycles, kernels, unknown = 0.0, 0, 0, 0
    kernel_flops = kernel_bytes = 0.0
    by_part: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name in _run(lines):
        innermost, turns = loops.get(name, hlo.ONCE)
        times = turns or 1
        unknown += turns is None
        arrays = {
            found[1]: found[2] for line in lines[name] if (found := hlo.INSTRUCTION.match(line))
        }
        for line in lines[name]:
            found = hlo.INSTRUCTION.match(line)
            assert found is not None  # as `computations` looked
            opcode = found[3]
            if opcode in NO_WORK or opcode.endswith(("-done", "-update")):
                continue
            read = OPERANDS.findall(line[found.end() :].partition(")")[0])
            if _has_operands(opcode, found[2]):
                read = []
            made = WORKSPACE.sub(")", found[2]) if LIBRARY.search(line) else found[2]
            moved = [made, *(arrays[operand] for operand in read if operand in arrays)]
            num_bytes += times * sum(_bytes(array, innermost or 1) for array in moved)
            estimate = CYCLES.search(line)
            kernels += opcode == "custom-call" and estimate is None and "tpu_custom_call" in line
            if cost := COST.search(line):
                kernel_flops += times * int(cost[1])
                kernel_bytes += times * int(cost[2])
            if estimate is not None:
                cycles += times * int(estimate[1])
                by_part[_part(line)][_kind(line, opcode, lines)] += times * int(estimate[1])
    parts = {part: dict(kinds) for part, kinds in by_part.items()}
    return Schedule(
        num_bytes, cycles if parts else None, parts, kernels, kernel_flops, kernel_bytes, unknown
    )


def _has_operands(opcode: str, made: str) -> bool:
    """Whether what is made begins with the operands, as of work that goes on beside other work."""
    return opcode.endswith("-start") and opcode != "all-reduce-start" and made.startswith("(")


def _run(lines: dict[str, list[str]]) -> Iterator[str]:
    """Computations that are run as such: the entry, and what loops, branches and calls run."""
    waiting, seen = [next(reversed(lines))], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in lines:
            continue
        seen.add(name)
        yield name
        for line in lines[name]:
            if re.search(r" (while|conditional|call)\(", line):
                for called in hlo.CALLED.findall(line):
                    waiting += re.findall(r"[\w.\-]+", called)


def _bytes(arrays: str, turns: int) -> float:
    """In main memory. Of an array with as many rows as the loop around has turns, one row: what a
    scan over layers takes of stacked arrays.
    """
    total = 0.0
    for kind, sizes, layout in ARRAY.findall(arrays):
        if "S(" in layout:  # another memory, as a TPU's VMEM
            continue
        shape = [int(size) for size in sizes.split(",") if size]
        if turns > 1 and len(shape) > 1 and shape[0] == turns:
            shape[0] = 1
        total += hlo.BYTES.get(kind, 4) * _numbers(shape, layout)
    return total


def _numbers(shape: list[int], layout: str) -> int:
    """Of an array as it is laid out: with what the tiles of a TPU add."""
    padded = list(shape)
    tile = TILE.search(layout)
    order = [int(place) for place in layout.partition(":")[0].split(",") if place.isdigit()]
    if tile is not None and len(order) == len(shape):
        for place, size in zip(order, (int(tile[2]), int(tile[1])), strict=False):
            padded[place] = -(-padded[place] // size) * size
    total = 1
    for size in padded:
        total *= size
    return total


def _part(line: str) -> str:
    """The part of the model that an operation is of, or "losses and optimizer"."""
    name = NAME.search(line)
    path = name[1].split("/") if name else []
    return next((part for part in PARTS if part in path), "losses and optimizer")


def _kind(line: str, opcode: str, lines: dict[str, list[str]]) -> str:
    """Attention between its projections, products with what is fused into them, copies, other."""
    name = NAME.search(line)
    path = name[1].split("/") if name else []
    inside = [place for place, module in enumerate(path) if module.endswith("attention")]
    if inside and inside[-1] + 1 < len(path) and path[inside[-1] + 1] not in PROJECTIONS:
        return "attention"
    called = CALLS.search(line)
    body = "\n".join(lines.get(called[1], ())) if called else line
    if any(product in body for product in PRODUCTS):
        return "products"
    copies = opcode in ("copy", "copy-start", "transpose") or "copy" in line.partition("=")[0]
    return "copies" if copies else "other"
