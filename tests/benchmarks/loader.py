"""Speed and memory of the loader: JPEG records to batches, by number of processes.

    python tests/benchmarks/loader.py [--workers=0,1,2] [--batch_size=256] [--batches=12]

Writes 512 JPEG files of 256 x 256 pixels into a temporary data set. Per line: images/s after the
first batch, and while nobody takes a batch: bytes in /dev/shm, and for each process its resident
memory and what belongs to it alone (unique set size). The main module imports grain_jax.train, as
training does.
"""

import io
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import grain_jax.train  # noqa: F401, which a process of the loader would import again
from grain_jax.command_line import Count, parse
from grain_jax.config import DataConfig
from grain_jax.data import tfds_records as storage
from grain_jax.data.loader import training_batches
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tokenizer import build_tokenizer

IMAGES = 512
RESIDENT, ALONE = ("Rss",), ("Private_Clean", "Private_Dirty")


@dataclass
class Options:
    """What to measure."""

    workers: str = "0,1,2"  # numbers of processes, with commas between them
    batch_size: Count = 256  # images of a batch
    batches: Count = 12  # that are timed, after the first


def main() -> None:
    """Prints one line a number of processes."""
    options = parse(Options, None, command="loader", description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        source = storage.RecordSource(folder, "train")
        for workers in map(int, options.workers.split(",")):
            measure(source, workers, options.batch_size, options.batches)


def write(folder: Path) -> None:
    """A data set of smooth noise, which JPEG makes some 20 kB of."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        regions = tuple(Region((0.1, 0.1, 0.5, 0.5), f"a blue part {k}") for k in range(i % 6))
        record = Record(str(i), out.getvalue(), (Caption(f"image {i} of some noise"),), regions)
        records.append(storage.encode_record(record))
    path = storage.shard_path(folder, "train", 0, 1)
    storage.write_metadata(folder, {"train": storage.write_shard(path, records)})


def measure(source: storage.RecordSource, workers: int, batch_size: int, batches: int) -> None:
    """Prints speed and memory with so many processes."""
    config = DataConfig(dataset="tfds", num_workers=workers)
    shared = {file.name for file in Path("/dev/shm").glob("psm_*")}
    with training_batches(
        source,
        config,
        build_tokenizer(config),
        image_size=224,
        batch_size=batch_size,
        seed=0,
    ) as made:
        next(made)
        start = time.perf_counter()
        for _ in range(batches):
            next(made)
        speed = batches * batch_size / (time.perf_counter() - start)
        time.sleep(5)  # until no more is made ahead
        files = [f for f in Path("/dev/shm").glob("psm_*") if f.name not in shared]
        held = sum(file.stat().st_size for file in files) / 2**20
        pids = [process.pid or 0 for process in multiprocessing.active_children()]
        sizes = [f"{memory(pid, RESIDENT):.0f} ({memory(pid, ALONE):.0f} alone)" for pid in pids]
        print(
            f"workers {workers}: {speed:.0f} images/s; {len(files)} segments, {held:.0f} MiB "
            f"shared; MiB resident in each process: {', '.join(sizes) or '-'}",
            flush=True,
        )


def memory(process: int, kinds: Sequence[str]) -> float:
    """MiB of a process that the kernel counts under `kinds`."""
    kept = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in kinds:
            kept += int(rest.split()[0])
    return kept / 2**10


if __name__ == "__main__":
    main()
