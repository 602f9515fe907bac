"""Reads the text of a compiled program: what each device computes, and what devices exchange."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
