"""Which worker has which images, and what becomes of the images of one that dies."""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class _Session:
    """The images that a worker was given since it began, without those it is done with."""

    held: dict[str, None] = field(default_factory=dict)  # in the order in which they were given
    is_last_given: bool = False
    size_of_group: int = 0  # of images of a worker that died; 0 for images that come first here


class Dealer:
    """Deals images to workers, each image to one at a time.

    Images of a worker that died are dealt again, first together, as most workers die for other
    reasons, then in halves. An image with which a worker dies while it has no other is given up.

    A worker gets images in sessions. Within one it is given more and more; what it is given as the
    last of a session it has to finish before the next begins.
    """

    def __init__(self, images: Iterator[str]) -> None:
        self._images, self._exhausted = images, False
        self._again: deque[list[str]] = deque()
        self._sessions: dict[int, _Session] = {}

    @property
    def is_over(self) -> bool:
        """Whether no image is left, and no worker has any."""
        return self._exhausted and not self._again and not self._sessions

    def deal(self, worker: int, room: int) -> tuple[list[str], bool] | None:
        """Images for a worker, and whether they are the last of its session; None where there is
        nothing for it to begin with.

        Args:
            room: images that it may hold at once. Those of a worker that died may be more.
        """
        session = self._sessions.get(worker)
        if session is not None and session.is_last_given:
            return [], False
        if session is None and self._again:
            given = self._again.popleft()
            session = _Session(size_of_group=len(given), is_last_given=True)
        elif session is None:
            if not (given := self._take(room)):
                return None
            session = _Session(is_last_given=self._exhausted)
        else:
            # Images that are dealt again wait for a session to begin.
            given = [] if self._again else self._take(room - len(session.held))
            session.is_last_given = self._exhausted or bool(self._again)
        self._sessions[worker] = session
        session.held.update(dict.fromkeys(given))
        return given, session.is_last_given

    def done(self, worker: int, image: str) -> bool:
        """Whether the worker had the image, which it is done with."""
        session = self._sessions.get(worker)
        if session is None or image not in session.held:
            return False
        del session.held[image]
        return True

    def ended(self, worker: int) -> None:
        """The worker is done with what it was given as the last of its session."""
        self._sessions.pop(worker, None)

    def died(self, worker: int) -> str | None:
        """The worker is no more; the image that is given up, if any."""
        session = self._sessions.pop(worker, None)
        if session is None or not session.held:
            return None
        held = list(session.held)
        if session.size_of_group == 1:
            return held[0]
        if session.size_of_group and len(held) > 1:
            half = len(held) // 2
            self._again += [held[:half], held[half:]]
        else:
            self._again.append(held)
        return None

    def _take(self, count: int) -> list[str]:
        found = list(itertools.islice(self._images, max(0, count)))
        self._exhausted |= len(found) < count
        return found
