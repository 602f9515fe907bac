"""Reads the text of a compiled program: what each device computes, and what devices exchange."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    "collective-broadcast",
)
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8}
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-]+)")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One operation of one device, with the arrays that it makes."""

    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and dimensions of each
    in_loop: bool  # within the body of a loop, so once a turn
    text: str

    @property
    def collective(self) -> str:
        """Which collective it is or begins; "" for none."""
        name = self.opcode.removesuffix("-start")
        return name if name in COLLECTIVES else ""

    @property
    def num_bytes(self) -> int:
        """Of what it makes; of an asynchronous collective, without its operands."""
        sizes = [BYTES.get(kind, 4) * math.prod(shape) for kind, shape in self.shapes]
        return max(sizes) if self.opcode.endswith("-start") else sum(sizes)


def instructions(text: str) -> list[Instruction]:
    """Every instruction of a compiled program (`compiled.as_text()`), those of fusions included."""
    lines: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
        elif name and INSTRUCTION.match(line):
            lines[name].append(line)
    in_loop = set(_reached(lines, _loop_bodies(text)))
    return [
        _instruction(line, in_loop=computation in in_loop)
        for computation, body in lines.items()
        for line in body
    ]


def groups(instruction: Instruction) -> list[list[int]]:
    """Devices that a collective exchanges among; the pairs of a permutation."""
    if found := re.search(
        r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", instruction.text
    ):
        lists = re.findall(r"\{([\d,]+)\}", found[1])
        return [[int(device) for device in group.split(",")] for group in lists]
    iota = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction.text
    )
    if iota is None:
        raise ValueError(f"No groups of devices in {instruction.text[:200]}")
    shape, sizes = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    if iota[3]:
        devices = devices.transpose([int(axis) for axis in iota[3].split(",")])
    return devices.reshape(shape).tolist()


def _loop_bodies(text: str) -> list[str]:
    return re.findall(r"\bbody=%?([\w.\-]+)", text)


def _reached(lines: dict[str, list[str]], names: list[str]) -> Iterator[str]:
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        names += [called for line in lines.get(name, ()) for called in CALLED.findall(line)]


def _instruction(line: str, *, in_loop: bool) -> Instruction:
    found = INSTRUCTION.match(line)
    assert found is not None  # as `instructions` looked
    shapes = tuple(
        (kind, tuple(int(size) for size in sizes.split(",") if size))
        for kind, sizes in SHAPE.findall(found[2])
    )
    return Instruction(found[3], shapes, in_loop, line.strip())
