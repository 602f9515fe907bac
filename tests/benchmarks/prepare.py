"""Speed and peak memory of `prepare` by number of images, and what that means for 12 million.

    python tests/benchmarks/prepare.py [--sizes=2000,20000] [--side=64] [--workers=1]
        [--decoded_cache=224x224]

For each size: tars of 1,000 JPEG files of side x side pixels with a caption each (500 different
images, under keys of their own), read by `python -m grain_jax.prepare --from=webdataset` in a
process of its own. Per line: images/s by the clock, with the start of the process, and per second
of CPU time (which other work on the machine disturbs less), the peak resident memory of the command
and of its largest worker (with --workers=1 there is none), files and bytes that were written. Below
it what an image more costs between this size and the one before, and the plan: the last two sizes
extended in a line to 12 million images on --cores.
"""

import io
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from grain_jax.command_line import Count, parse

DIFFERENT = 500  # images
PER_TAR = 1_000
PLANNED = 12_000_000


@dataclass
class Options:
    """What to measure."""

    sizes: str = "2000,20000"  # numbers of images, with commas between them, rising
    side: Count = 64  # pixels of an image
    workers: Count = 1  # of prepare
    decoded_cache: str = ""  # of prepare
    cores: Count = 16  # that the plan is made for


@dataclass(frozen=True)
class Measured:
    """One run of prepare."""

    images: int
    seconds: float
    cpu: float  # seconds, of the command and its workers
    main: float  # MiB, peak resident memory of the command
    worker: float  # MiB, of its largest worker
    files: int
    size: int  # bytes


def main() -> None:
    """Prints the lines."""
    options = parse(Options, None, command="prepare", description=__doc__)
    images = _images(options.side)
    measured: list[Measured] = []
    for count in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / "tars", images, count)
            one = _measure(Path(folder), options, count)
        print(
            f"{one.images:,} images of {options.side} px: {one.images / one.seconds:.0f} images/s, "
            f"{one.images / one.cpu:.0f} per second of CPU time; peak {one.main:.0f} MiB, of a "
            f"worker {one.worker:.0f} MiB; {one.files} files, {one.size / 2**20:.0f} MiB",
            flush=True,
        )
        if measured:
            _print_growth(measured[-1], one, options)
        measured.append(one)


def _print_growth(small: Measured, large: Measured, options: Options) -> None:
    more = large.images - small.images
    speed, growth = more / (large.cpu - small.cpu), (large.main - small.main) / more
    left = PLANNED - large.images
    print(
        f"  an image more: {1000 / speed:.2f} ms of CPU time, {growth * 2**20:.0f} bytes of "
        f"memory, {(large.size - small.size) / more:.0f} bytes of disk\n"
        f"  {PLANNED:,} images: {PLANNED / speed / 3600 / options.cores:.1f} hours on "
        f"{options.cores} cores ({speed:.0f} images/s a core), peak of the command "
        f"{large.main + growth * left:,.0f} MiB, "
        f"{large.size / large.images * PLANNED / 2**30:,.0f} GiB in at most 1,000 shards",
        flush=True,
    )


def _images(side: int) -> list[bytes]:
    """Smooth noise."""
    rng, made = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        coarse = Image.fromarray(rng.integers(0, 255, (side // 8, side // 8, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def _write(folder: Path, images: list[bytes], count: int) -> None:
    folder.mkdir()
    for start in range(0, count, PER_TAR):
        with tarfile.open(folder / f"{start // PER_TAR:05d}.tar", "w") as tar:
            for index in range(start, min(start + PER_TAR, count)):
                caption = f"image {index} of some noise"
                for name, data in (
                    (f"{index:09d}.jpg", images[index % DIFFERENT]),
                    (f"{index:09d}.txt", caption.encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _measure(folder: Path, options: Options, count: int) -> Measured:
    out = folder / "out"
    command = [
        *(sys.executable, "-m", "grain_jax.prepare", "--from=webdataset"),
        *(f"--input={folder / 'tars'}", f"--output={out}", f"--workers={options.workers}"),
        *([f"--decoded_cache={options.decoded_cache}"] if options.decoded_cache else []),
    ]
    start, before = time.perf_counter(), _cpu_of_children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    main = worker = 0.0
    while process.poll() is None:
        main = max(main, _peak(process.pid))
        worker = max([worker, *map(_peak, _children(process.pid))])
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode())
    files = [path for path in out.rglob("*") if path.is_file()]
    return Measured(
        images=count,
        seconds=seconds,
        cpu=_cpu_of_children() - before,
        main=main,
        worker=worker,
        files=len(files),
        size=sum(path.stat().st_size for path in files),
    )


def _cpu_of_children() -> float:
    """Seconds of the processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _children(process: int) -> list[int]:
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return []
    return list(map(int, listed.split()))


def _peak(process: int) -> float:
    """MiB of resident memory, the highest so far."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 2**10 if lines else 0.0


if __name__ == "__main__":
    main()
