"""Speed and memory of loaders on the same images: JPEG, the decoded cache, webdataset with torch.

    python tests/benchmarks/loader.py [--workers=0,1,2] [--threads=1] [--batch_size=256]
        [--batches=12] [--loaders=jpeg,aspect,squares,webdataset] [--width=341] [--height=256]
        [--interpolation=bicubic]

Writes 2,048 JPEG files of `--width` x `--height` pixels (512 different ones) into a temporary data
set, into two decoded caches (`--decoded_cache=224` and `224x224`), and into 8 tars. Every loader
makes the same batches but for their order: uint8 images of 224 x 224, squashed by
`--interpolation`, and token ids of the caption and of five descriptions. webdataset (with torch's
DataLoader; both must be installed) does for an image what grain_jax does, with the same tokenizer.
Per line: images/s, images per second of CPU time of all processes (which other work on the machine
disturbs less), and both as multiples of webdataset's. For grain_jax also, while nobody takes a
batch: bytes in /dev/shm, and for each process its resident memory and what belongs to it alone
(unique set size). The main module imports grain_jax.train, as training does.
"""

import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import grain_jax.train  # noqa: F401, which a process of the loader would import again
from grain_jax.command_line import Count, parse
from grain_jax.config import DataConfig
from grain_jax.config.schema import Interpolation
from grain_jax.data import tfds_records as storage
from grain_jax.data.decoded_cache import DecodedCache
from grain_jax.data.loader import training_batches
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.tokenizer import build_tokenizer
from grain_jax.data.transforms import RESAMPLING, decode_image

IMAGES, DIFFERENT, SIZE = 2_048, 512, 224
TARS = 8
WARM_UP = 6  # batches, more than are made ahead
RESIDENT, ALONE = ("Rss",), ("Private_Clean", "Private_Dirty")
CACHES = {"jpeg": None, "aspect": DecodedCache(SIZE), "squares": DecodedCache(SIZE, square=True)}
CONFIG = DataConfig(dataset="tfds")


@dataclass
class Options:
    """What to measure."""

    workers: str = "0,1,2"  # numbers of processes, with commas between them
    threads: Count = 2  # of each process of grain_jax; webdataset has one
    batch_size: Count = 256  # images of a batch
    batches: Count = 12  # that are timed, after the first
    loaders: str = "jpeg,aspect,squares,webdataset"  # with commas between them
    width: Count = 341  # of the JPEG files, pixels
    height: Count = 256
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class Speed:
    """Of one loader."""

    images: float  # per second
    images_per_cpu_second: float


def main() -> None:
    """Prints one line for each loader and number of processes."""
    options = parse(Options, None, command="loader", description=__doc__)
    names = options.loaders.split(",")
    if "webdataset" in names and importlib.util.find_spec("webdataset") is None:
        print("webdataset is not installed: left out")
        names.remove("webdataset")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options)
        for workers in map(int, options.workers.split(",")):
            measured = {name: measure(Path(folder), name, workers, options) for name in names}
            theirs = measured.get("webdataset")
            for name, speed in measured.items():
                print(f"workers {workers}, {name}: {in_words(speed, theirs)}", flush=True)


def in_words(speed: Speed, theirs: Speed | None) -> str:
    """Both figures, as multiples of webdataset's too."""
    ratios = ["", ""]
    if theirs is not None:
        ratios[0] = f" ({speed.images / theirs.images:.2f})"
        ratios[1] = f" ({speed.images_per_cpu_second / theirs.images_per_cpu_second:.2f})"
    return (
        f"{speed.images:.0f} images/s{ratios[0]}, {speed.images_per_cpu_second:.0f} per second of "
        f"CPU time{ratios[1]}"
    )


def records(width: int, height: int) -> Iterator[Record]:
    """Smooth noise, which JPEG makes some 25 kB of, with a caption and five descriptions."""
    rng, images = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        coarse = Image.fromarray(rng.integers(0, 255, (32, 43, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    regions = tuple(Region((0.1, 0.1, 0.5, 0.5), f"a blue part {k}") for k in range(5))
    for i in range(IMAGES):
        caption = Caption(f"image {i} of some noise")
        yield Record(str(i), images[i % DIFFERENT], (caption,), regions)


def write(folder: Path, options: Options) -> None:
    """The same images as prepared data sets and as tars."""
    made = list(records(options.width, options.height))
    for name, cache in CACHES.items():
        (folder / name).mkdir()
        images = [record.image for record in made[:DIFFERENT]]
        if cache is not None:
            images = [cache.encode(decode_image(image)) for image in images]
        stored = (
            storage.encode_record(dataclasses.replace(record, image=images[i % DIFFERENT]))
            for i, record in enumerate(made)
        )
        path = storage.shard_path(folder / name, "train", 0, 1)
        shard = storage.write_shard(path, stored, compress=cache is None)
        storage.write_metadata(folder / name, {"train": shard})
    for number in range(TARS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for record in made[number::TARS]:
                texts = {
                    "caption": record.captions[0].text,
                    "descriptions": [region.description for region in record.regions],
                }
                _add(tar, f"{record.id}.jpg", record.image)
                _add(tar, f"{record.id}.json", json.dumps(texts).encode())


def _add(tar: tarfile.TarFile, name: str, data: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def measure(folder: Path, name: str, workers: int, options: Options) -> Speed:
    """The speed of a loader with so many processes; prints the memory of grain_jax's."""
    shared = {file.name for file in Path("/dev/shm").glob("psm_*")}
    opened = _theirs if name == "webdataset" else _ours
    with opened(folder, name, workers, options) as made:
        for _ in range(WARM_UP):
            next(made)
        start, cpu = time.perf_counter(), cpu_seconds()
        for _ in range(options.batches):
            next(made)
        images = options.batches * options.batch_size
        took, used = time.perf_counter() - start, cpu_seconds() - cpu
        if name == "jpeg":
            time.sleep(5)  # until no more is made ahead
            print(f"workers {workers}, {name}: {memory_in_words(shared)}", flush=True)
        return Speed(images / took, images / used)


def _ours(folder: Path, name: str, workers: int, options: Options) -> AbstractContextManager[Any]:
    config = DataConfig(
        dataset="tfds",
        num_workers=workers,
        num_threads=options.threads,
        interpolation=options.interpolation,
    )
    return training_batches(
        storage.RecordSource(folder / name, "train"),
        config,
        build_tokenizer(config),
        image_size=SIZE,
        batch_size=options.batch_size,
        seed=0,
    )


def _theirs(folder: Path, name: str, workers: int, options: Options) -> AbstractContextManager[Any]:
    import webdataset
    from torch.utils.data import DataLoader

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = (
        webdataset.WebDataset(tars, resampled=True, shardshuffle=False)
        .shuffle(256)
        .to_tuple("jpg", "json")
        .map(Sample(build_tokenizer(CONFIG), RESAMPLING[options.interpolation]))
        .batched(options.batch_size)
    )
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    return closing(_Closing(batches))


class Sample:
    """Decodes, resizes and tokenizes one sample of a tar."""

    def __init__(self, tokenizer: Any, resampling: Image.Resampling) -> None:
        self.tokenizer = tokenizer
        self.resampling = resampling

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[Any, ...]:
        image = Image.open(io.BytesIO(sample[0])).convert("RGB")
        pixels = np.asarray(image.resize((SIZE, SIZE), self.resampling))
        texts = json.loads(sample[1])
        caption, _ = self.tokenizer.encode([texts["caption"]], CONFIG.caption_length)
        descriptions, _ = self.tokenizer.encode(texts["descriptions"], CONFIG.description_length)
        return pixels, caption[0], descriptions


class _Closing:
    """An iterator of torch's DataLoader, whose processes end with it."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches: Iterator[Any] | None = batches

    def __next__(self) -> Any:
        assert self.batches is not None
        return next(self.batches)

    def close(self) -> None:
        self.batches = None


def cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has started so far."""
    pids = [os.getpid(), *(process.pid or 0 for process in multiprocessing.active_children())]
    return sum(map(_cpu_seconds, pids))


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user, system


def memory_in_words(shared: set[str]) -> str:
    """Shared memory but for the segments `shared`, and memory of each process."""
    files = [f for f in Path("/dev/shm").glob("psm_*") if f.name not in shared]
    held = sum(file.stat().st_size for file in files) / 2**20
    pids = [process.pid or 0 for process in multiprocessing.active_children()]
    sizes = [f"{memory(pid, RESIDENT):.0f} ({memory(pid, ALONE):.0f} alone)" for pid in pids]
    return (
        f"{len(files)} segments, {held:.0f} MiB shared; MiB resident in each process: "
        f"{', '.join(sizes) or '-'}"
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
