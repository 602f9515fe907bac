"""A training step of another code in a process of its own, as its users run it.

Beside torch in one process the step of grain_jax was slower by a third on a CPU, so that neither
code may have the other's libraries, threads and memory about it.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from grain_jax.benchmarking.compiled_step import OutOfMemoryError
from grain_jax.benchmarking.memory import peak_bytes_of_process
from grain_jax.benchmarking.torch_peer import memory_named
from grain_jax.benchmarking.turns import Peer

STOP_SECONDS = 10.0  # that the process is given to end by itself


class _Built(NamedTuple):
    name: str
    differences: tuple[str, ...]
    parameters: int


class _Memory(NamedTuple):
    """Of `OutOfMemoryError`, which cannot be pickled."""

    needed: int | None
    message: str


class PeerProcess:
    """A `turns.Peer` that lives in another process; steps are started together when waited for."""

    def __init__(self, name: str, connection: Connection, process: BaseProcess) -> None:
        self._connection, self._process = connection, process
        self._started = 0
        self.name = name
        self.name, self.differences, self.parameters = self._answer()  # once it is built

    def run(self) -> None:
        """Starts one step at the next `wait`: what it costs to say so is no part of a step."""
        self._started += 1

    def wait(self) -> float:
        """Of `Peer`."""
        self._connection.send(self._started)
        self._started = 0
        return self._answer()

    def peak_bytes(self) -> int | None:
        """Of `Peer`; on a CPU of the whole process, its libraries included."""
        self._connection.send(None)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise ValueError(
                f"The process of {self.name} ended with status {self._process.exitcode} before it "
                "answered; killed by the system it has -9, mostly for a lack of memory. What it "
                "printed stands above. Try a smaller --batch_size."
            ) from None
        if isinstance(answer, _Memory):
            raise OutOfMemoryError(answer.needed, answer.message)
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextlib.contextmanager
def peer_process(name: str, build: Callable[[], Peer]) -> Iterator[PeerProcess]:
    """A process in which `build`, which is pickled, makes the step; it ends with the context.

    Raises what `build` raises: ValueError for a code that is not installed or cannot be this model.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, build), daemon=True)
    process.start()
    there.close()
    try:
        yield PeerProcess(name, here, process)
    finally:
        here.close()
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, name: str, build: Callable[[], Peer]) -> None:
    """Of the other process: a number of steps is run and waited for, None asks for the memory."""
    try:
        with memory_named(name):
            peer = build()
            connection.send(_Built(peer.name, peer.differences, peer.parameters))
            while True:
                try:
                    steps = connection.recv()
                except EOFError:
                    return
                if steps is None:
                    connection.send(peer.peak_bytes() or peak_bytes_of_process())
                    continue
                for _ in range(steps):
                    peer.run()
                connection.send(peer.wait())
    except OutOfMemoryError as error:
        connection.send(_Memory(error.needed, str(error)))
    except ValueError as error:
        connection.send(error)
