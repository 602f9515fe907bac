"""Several endpoints of one model as one `ChatModel`: each has a bound of its own.

A thread stays with its endpoint, so that a prefix cache there reads each image once, and a quick
endpoint gets more images than a slow one. An endpoint of which nothing can be asked is put aside
and tried again later, or not again where that could not help; the run stops only where all are.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from grain_jax.annotation.chat import Answer, Cancelled
from grain_jax.annotation.endpoint import Endpoint, NoAnswer, Unusable
from grain_jax.annotation.run import StageStopped

FIRST_ASIDE, LONGEST_ASIDE = 30.0, 600.0  # seconds; they double while nothing is answered


class _Member:
    """An endpoint and how it does; the pool's lock is for all of it."""

    def __init__(self, endpoint: Endpoint, first_aside: float) -> None:
        self.endpoint = endpoint
        self.asked = 0  # requests at this moment
        self.aside_since: float | None = None
        self.is_out = False  # aside for the rest of the run
        self.retry_at = 0.0
        self.next_aside = first_aside  # seconds
        self.is_tried = False  # a thread is looking whether it answers again


class EndpointPool:
    """A `ChatModel`.

    Args:
        endpoints: of the same model.
        bound: requests at once, of each.
        note: called with a sentence where an endpoint is put aside, and where it is back.
        first_aside: seconds until one that was put aside is tried again.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        bound: int,
        note: Callable[[str], None],
        first_aside: float = FIRST_ASIDE,
    ) -> None:
        self.name = endpoints[0].name
        self._bound, self._note, self._first_aside = bound, note, first_aside
        self._members = [_Member(endpoint, first_aside) for endpoint in endpoints]
        self._changed = threading.Condition()  # for all that follows, and the members
        self._answered_at = float("-inf")
        self._last_reason = ""
        self._cancelled = False
        self._of_thread = threading.local()

    def cancel(self) -> None:
        """See `ChatModel.cancel`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
        for member in self._members:
            member.endpoint.cancel()

    def close(self) -> None:
        """Closes the connections."""
        for member in self._members:
            member.endpoint.close()

    def ask(
        self, messages: Sequence[dict[str, Any]], *, schema: dict[str, Any], schema_name: str
    ) -> Answer:
        """See `ChatModel.ask`; what one endpoint cannot answer any more is asked of another."""
        while True:
            member = self._take()
            try:
                answer = member.endpoint.ask(
                    messages,
                    schema=schema,
                    schema_name=schema_name,
                    others_left=self._others_left(member),
                )
            except NoAnswer:
                if member.endpoint.is_alive():
                    raise
                self._of_thread.member = None  # it answers others, and has no room for this one
            except Unusable as stopped:
                self._put_aside(member, stopped)
            else:
                with self._changed:
                    self._answered_at, member.next_aside = time.monotonic(), self._first_aside
                return answer
            finally:
                with self._changed:
                    member.asked -= 1
                    self._changed.notify_all()

    def _take(self) -> _Member:
        """An endpoint with room for a request, waited for. Raises `StageStopped` where all are
        aside, and none of them can have recovered.
        """
        while True:
            with self._changed:
                if self._cancelled:
                    raise Cancelled
                if (free := self._with_room()) is not None:
                    free.asked += 1
                    self._of_thread.member = free
                    return free
                due = self._to_try_again()
                if due is None:
                    if all(m.aside_since is not None and not m.is_tried for m in self._members):
                        raise StageStopped(
                            f"None of the {len(self._members)} endpoints is left. The last: "
                            f"{self._last_reason}"
                        )
                    self._changed.wait(self._seconds_to_wait())
                    continue
                due.is_tried = True
            self._try_again(due)

    def _others_left(self, member: _Member) -> bool:
        with self._changed:
            return any(m.aside_since is None for m in self._members if m is not member)

    def _with_room(self) -> _Member | None:
        """The endpoint of this thread, else the one with the fewest requests."""
        free = [m for m in self._members if m.aside_since is None and m.asked < self._bound]
        own = getattr(self._of_thread, "member", None)
        return own if own in free else min(free, key=lambda m: m.asked, default=None)

    def _to_try_again(self) -> _Member | None:
        """One whose time has come; where all are aside, any that may have recovered since."""
        waiting = self._waiting()
        if all(m.aside_since is not None and not m.is_tried for m in self._members):
            return next((m for m in waiting if (m.aside_since or 0.0) < self._answered_at), None)
        now = time.monotonic()
        return next((m for m in waiting if m.retry_at <= now), None)

    def _waiting(self) -> list[_Member]:
        """Those that are aside for a while, and that nobody looks at."""
        aside = [m for m in self._members if m.aside_since is not None and not m.is_tried]
        return [m for m in aside if not m.is_out]

    def _seconds_to_wait(self) -> float | None:
        """Until the next one is tried again, unless something changes before."""
        times = [m.retry_at for m in self._waiting()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _try_again(self, member: _Member) -> None:
        alive = member.endpoint.is_alive()
        with self._changed:
            member.is_tried = False
            if alive and not member.is_out:
                member.aside_since = None
                self._note(f"{member.endpoint.url} answers again.")
            elif not alive:
                self._wait_longer(member)
            self._changed.notify_all()

    def _put_aside(self, member: _Member, stopped: Unusable) -> None:
        with self._changed:
            self._last_reason = str(stopped)
            if member.is_out or (member.aside_since is not None and not stopped.lasts):
                return  # another request has found it out
            member.is_out = stopped.lasts
            self._wait_longer(member)
            left = sum(each.aside_since is None for each in self._members)
            seconds = member.retry_at - time.monotonic()
            how_long = "the rest of the run" if member.is_out else f"{seconds:.0f} s"
            self._note(
                f"{member.endpoint.url} is put aside for {how_long}, with {left} of "
                f"{len(self._members)} endpoints left: {stopped.reason}"
            )

    def _wait_longer(self, member: _Member) -> None:
        member.aside_since = time.monotonic()
        member.retry_at = member.aside_since + member.next_aside
        member.next_aside = min(2 * member.next_aside, LONGEST_ASIDE)
