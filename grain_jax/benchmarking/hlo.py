"""Reads the text of a compiled program: what each device computes, and what devices exchange."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
)
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
LOOP = re.compile(r"\bbody=%?([\w.\-]+)")
CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One operation of one device, with the arrays that it makes."""

    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and dimensions of each
    in_loop: bool  # within the body of a loop, so once a turn
    text: str
    turns: int | None = 1  # of all loops around it together; None where XLA does not say

    @property
    def collective(self) -> str:
        """Which collective it is or begins; "" for none."""
        name = self.opcode.removesuffix("-start")
        return name if name in COLLECTIVES else ""

    @property
    def made(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Of `shapes` what it makes; of an asynchronous collective, without its operands."""
        if self.opcode.endswith("-start") and self.collective != "all-reduce":
            # Operands, then results, then perhaps scalars of its own.
            arrays = [shape for shape in self.shapes if shape[1]]
            return tuple(arrays[len(arrays) // 2 :])
        return self.shapes

    @property
    def num_bytes(self) -> int:
        """Of `made`."""
        return sum(BYTES.get(kind, 4) * math.prod(shape) for kind, shape in self.made)


def instructions(text: str) -> list[Instruction]:
    """Every instruction of a compiled program (`compiled.as_text()`), those of fusions included."""
    lines = computations(text)
    loops = loops_of(lines)
    return [
        _instruction(line, in_loop=name in loops, turns=loops.get(name, ONCE).turns)
        for name, body in lines.items()
        for line in body
    ]


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program, by its name; the entry comes last."""
    lines: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
        elif name and INSTRUCTION.match(line):
            lines[name].append(line)
    return lines


class Turns(NamedTuple):
    """How often a computation is run; None where the program does not say."""

    innermost: int | None  # by the loop that is nearest around it
    turns: int | None  # by all loops around it together


ONCE = Turns(1, 1)


def loops_of(lines: dict[str, list[str]]) -> dict[str, Turns]:
    """Turns of each computation that is in a loop. Inner loops come before those around them."""
    loops = [
        (loop[1], line) for body in lines.values() for line in body if (loop := LOOP.search(line))
    ]
    found: dict[str, Turns] = {}
    for body, line in loops:
        length = _length(line, lines)
        for reached in _reached(lines, [body]):
            innermost, around = found.get(reached, (length, 1))
            found[reached] = Turns(innermost, around * length if length and around else None)
    return found


def _length(loop: str, lines: dict[str, list[str]]) -> int | None:
    """Turns of one loop: as XLA notes it, or the only whole number that its condition compares
    with, as in the loops that `jax.lax.scan` makes.
    """
    if known := TURNS.search(loop):
        return int(known[1])
    condition = CONDITION.search(loop)
    if condition is None:
        return None
    numbers = [
        int(number)
        for line in lines.get(condition[1], ())
        for number in re.findall(r"= s32\[\]\S* constant\((\d+)\)", line)
    ]
    return numbers[0] if len(numbers) == 1 else None


def groups(instruction: Instruction) -> list[list[int]]:
    """Devices that a collective exchanges among; the pairs of a permutation."""
    if found := re.search(
        r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", instruction.text
    ):
        lists = re.findall(r"\{([\d,]+)\}", found[1])
        return [[int(device) for device in group.split(",")] for group in lists]
    if found := re.search(r"replica_groups=(mesh\[[^{]*)\{([^}]*)\}", instruction.text):
        return _groups_of_axes(found[1], found[2])
    iota = re.search(rf"replica_groups=\[([\d,]+)\]<={IOTA}", instruction.text)
    if iota is None:
        raise ValueError(f"No groups of devices in {instruction.text[:200]}")
    return _iota(*iota.groups()[1:]).reshape(_sizes(iota[1])).tolist()


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Devices in the order that "[4,2]T(1,0)" stands for."""
    devices = np.arange(math.prod(_sizes(shape))).reshape(_sizes(shape))
    return devices.transpose(_sizes(order)) if order else devices


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _groups_of_axes(mesh: str, axes: str) -> list[list[int]]:
    """Groups of devices that differ along `axes`, "'a'" or a part "'a':(1)2", of a mesh as
    "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0))".
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    order = re.search(rf"device_ids=\({IOTA}\)", mesh)
    flat = _iota(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
    parts = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    # Each axis as three: what comes before the part that is gone over, the part, what comes after.
    split: list[int] = []
    gone_over: list[int] = []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        gone_over.append(len(split) + 1)
        split += [before, part, size // (before * part)]
    kept = [axis for axis in range(len(split)) if axis not in gone_over]
    devices = flat.reshape(split).transpose(kept + gone_over)
    return devices.reshape(-1, math.prod(part for _, part in parts.values())).tolist()


def _reached(lines: dict[str, list[str]], names: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        for line in lines.get(name, ()):
            for called in CALLED.findall(line):
                names += re.findall(r"[\w.\-]+", called)


def _instruction(line: str, *, in_loop: bool, turns: int | None) -> Instruction:
    found = INSTRUCTION.match(line)
    assert found is not None  # as `instructions` looked
    shapes = tuple(
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in SHAPE.findall(found[2])
    )
    return Instruction(found[3], shapes, in_loop, line.strip(), turns)
