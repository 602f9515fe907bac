"""What `annotate describe` adds to the time of the endpoint, a request.

  python tests/benchmarks/describe_overhead.py --images=400 --side=512 --delay=0.1 --concurrency=32

The endpoint is a process on this machine (`tests/helpers/chat_server.py`) that answers after
`--delay` seconds. Without any overhead, a run takes requests / concurrency x delay; the overhead is
what it takes more, divided by the requests. It includes the time that the endpoint itself computes,
as it shares the cores; `--delay=0` shows how many requests a second the two reach.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from chat_server import chat_server

from grain_jax.annotation.describe import REQUESTS_PER_IMAGE, Describe, DescribeSettings
from grain_jax.annotation.endpoint import Endpoint, EndpointSettings
from grain_jax.annotation.prompts import read_prompts
from grain_jax.annotation.run import StageSpec, run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=512, help="pixels of the square images")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds of each answer")
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chat_server() as server:
        write_images(Path(folder) / "images", options.images, options.side)
        server.behave("ok", delay=options.delay)
        seconds, cpu = measure(Path(folder), server.url, options.concurrency)
    requests = REQUESTS_PER_IMAGE * options.images
    endpoint = requests / options.concurrency * options.delay
    print(f"images {options.images} of {options.side} px, concurrency {options.concurrency}")
    print(f"requests {requests} in {seconds:.2f} s, {requests / seconds:.0f} a second")
    print(f"overhead {(seconds - endpoint) / requests * 1e3:.2f} ms a request")
    print(f"processor time of describe {cpu / requests * 1e3:.2f} ms a request")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def write_images(folder: Path, count: int, side: int) -> None:
    """Smooth images, which take as many bytes as photographs."""
    folder.mkdir()
    for number in range(count):
        random = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        image = Image.fromarray(random).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}.jpg", quality=90)


def measure(folder: Path, url: str, concurrency: int) -> tuple[float, float]:
    """Seconds of a run, and seconds of processor time of this process."""
    settings = DescribeSettings("model", read_prompts(None), concurrency=concurrency)
    where = EndpointSettings(url, "model")
    stage = Describe(folder / "images", settings, lambda: Endpoint(where))
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    report = run_stage(stage, StageSpec(folder / "images", folder / "ann"))
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    assert not report.failed, report.examples
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


if __name__ == "__main__":
    main()
