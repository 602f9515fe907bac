"""A Ray cluster: joined, or started on this machine; its machines, and whether they can work here.

The machines share one file system: nothing but paths, options and results goes to and fro.
"""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain_jax
from grain_jax.extras import how_to_install

AUTO = "auto"
ANSWER_SECONDS = 5.0  # in which the address of a cluster has to answer
LOOK_SECONDS = 120.0  # in which every machine has to have looked at the files
SEEN_SECONDS = 60.0  # after which a file of another machine is seen here; NFS keeps names that long
# The beginning of HTTP/2, which Ray speaks: the preface, and a frame of settings without any.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4  # the kind of the first frame of an answer


class ClusterFailed(Exception):
    """The cluster cannot do what is left, and no option is to blame; the message says why."""


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster, and what Ray may use of it."""

    node: str  # Ray's name of it
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """The machines as they were when the cluster was joined."""

    machines: tuple[Machine, ...]

    @property
    def cpus(self) -> int:
        """Cores of all machines."""
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(machine.gpus for machine in self.machines)


def cluster_address(text: str) -> str:
    """A value of --ray: "auto" or host:port. Raises ValueError."""
    if text.startswith("ray://"):
        raise ValueError(
            f"{text!r} is for programs outside of a cluster; give the command on a machine of the "
            f"cluster, with --ray={AUTO} or --ray=HOST:6379"
        )
    host, _, port = text.rpartition(":")
    if text != AUTO and not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(
            f"{text!r} should be {AUTO!r}, or the address of a cluster, as head-node:6379"
        )
    return text


def import_ray() -> Any:
    """The module `ray`. Raises ImportError, which says how to install it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"--ray needs Ray, which cannot be imported ({error}); {how_to_install('ray')}"
        ) from None
    return ray


def check_address(address: str) -> str:
    """The address that a value of --ray stands for; "auto" where a cluster is found or started.

    Raises ValueError within seconds where nothing is there that can be one, and ImportError.
    """
    import_ray()
    if address != AUTO:
        _require_answer(cluster_address(address))
        return address
    given = os.environ.get("RAY_ADDRESS") or AUTO
    if given not in (AUTO, "local"):
        try:
            cluster_address(given)
        except ValueError as error:
            raise ValueError(f"RAY_ADDRESS: {error}.") from None
        _require_answer(given)
    return given


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster of an address; what was started for it ends at the end.

    "auto" is the one that RAY_ADDRESS or `ray start` on this machine names, and else one of this
    machine alone, which is started. Raises ValueError within seconds for an address where there is
    no cluster, or one of another version, and ImportError without Ray.
    """
    ray, given = import_ray(), check_address(address)
    try:
        ray.init(
            None if given == AUTO else given,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            include_dashboard=False,
        )
    except Exception as error:  # Ray has no type of its own for what can be wrong here
        raise ValueError(f"--ray={address}: {error}") from error
    try:
        yield Cluster(tuple(_machines(ray.nodes())))
    finally:
        ray.shutdown()


def _machines(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Machine]:
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
            yield Machine(node["NodeID"], node["NodeManagerAddress"], cpus, gpus)


def _require_answer(address: str) -> None:
    """Raises ValueError unless something speaks HTTP/2 there; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # of an address of IPv6
    try:
        with socket.create_connection((host, int(port)), ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":  # it is Ray's to speak TLS
                return
            connection.sendall(_HELLO)
            frame = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--ray={address} does not answer ({error or type(error).__name__}); see `ray status` "
            "there for the address, or give --ray=auto to use this machine."
        ) from None
    if len(frame) < 9 or frame[3] != _SETTINGS:
        raise ValueError(
            f"--ray={address} answers, and is not a Ray cluster; the port is 6379, unless `ray "
            "start --port` gave another."
        )


def require_same_files(cluster: Cluster, paths: Mapping[str, Path], *, shared: Path | None) -> None:
    """Raises ValueError, naming the machine, unless every machine has the same grain_jax and sees
    the same files.

    Args:
        paths: files and folders that are read, by the option that gave them.
        shared: a folder that is written to; a file with a number of its own is put there, and has
            to be seen by all. None: the machines write nothing.
    """
    ray = import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=2)(look_at)
    sizes = {name: (os.fspath(path), size_of(path)) for name, path in paths.items()}
    with _number_in(shared) as token:
        asked = {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, False))
            .remote(os.getcwd(), grain_jax.__version__, sizes, token): machine
            for machine in cluster.machines
        }  # fmt: skip
        deadline = time.monotonic() + LOOK_SECONDS
        for reference, machine in asked.items():
            where = f"the machine {machine.address} of the cluster"
            try:
                wrong = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                wrong = f"it has not looked at the files within {LOOK_SECONDS:.0f} s"
            except ray.exceptions.RayError as error:
                wrong = f"it cannot run grain_jax ({last_line(error)}); install it there"
            if wrong:
                raise ValueError(f"--ray: {where} cannot take part: {wrong}.")


@contextlib.contextmanager
def _number_in(folder: Path | None) -> Iterator[tuple[str, str] | None]:
    """A file with a number that no other file has: (path, number)."""
    if folder is None:
        yield None
        return
    number = uuid.uuid4().hex
    path = folder / f".seen-by-all-{number}"
    path.write_text(number, encoding="ascii")
    try:
        yield os.fspath(path), number
    finally:
        path.unlink(missing_ok=True)


def look_at(
    folder: str,
    version: str,
    sizes: Mapping[str, tuple[str, int | None]],
    token: tuple[str, str] | None,
) -> str:
    """What is wrong with this machine, "" for nothing; runs on each of them."""
    if version != grain_jax.__version__:
        return f"it has grain_jax {grain_jax.__version__}, and {version} was started"
    enter(folder)
    for name, (path, size) in sizes.items():
        if size is not None and size_of(Path(path)) != size:
            return f"it does not see {name}={path} as this one does; {_SHARE}"
    if token is not None:
        path, number = token
        try:
            same = Path(path).read_text(encoding="ascii") == number
        except OSError:
            same = False
        if not same:
            return f"it does not see what this one writes into {Path(path).parent}; {_SHARE}"
    return ""


_SHARE = "use a file system that all share, as NFS or a mounted bucket, at the same path"


def size_of(path: Path) -> int | None:
    """Bytes of a file, -1 for a folder, None for what is not there, as patterns are not."""
    try:
        return -1 if path.is_dir() else path.stat().st_size
    except OSError:
        return None


def enter(folder: str) -> None:
    """Makes relative paths mean in this process what they mean where the command was given."""
    with contextlib.suppress(OSError):  # all paths may be absolute; others are then not found
        os.chdir(folder)


def wait_until_seen(path: Path, seconds: float = SEEN_SECONDS) -> None:
    """Waits for a file that another machine has written. Raises `ClusterFailed`."""
    deadline = time.monotonic() + seconds
    # Listing a folder asks the server, where looking for a name may not.
    while path.name not in os.listdir(path.parent):
        if time.monotonic() > deadline:
            raise ClusterFailed(
                f"{path} was written by another machine {seconds:.0f} s ago and is not seen here. "
                "The same command continues."
            )
        time.sleep(0.2)


def original(error: BaseException) -> BaseException:
    """The error of a task or an actor as it was raised there, rather than Ray's report of it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def last_line(error: BaseException) -> str:
    """What an error of Ray comes down to, without the traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
