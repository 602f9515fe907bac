"""Which workers that died are replaced: not for ever where one dies at whatever it is given."""

from grain_jax.annotation.run import StageStopped

MAX_DEATHS = 20  # of workers one after the other, without a row between them
MAX_OPENING = 3  # of one place one after the other, without its stage open between them
# Of one place one after the other, without a row of it between them. An image that kills workers
# is found in as many as it takes to halve the images that one of them holds.
MAX_WORKING = 12


class Deaths:
    """Counts the deaths of workers, each of which has a place, a number from 0."""

    def __init__(self, places: int) -> None:
        self._since_row = 0  # of any place
        self._opening = [0] * places
        self._working = [0] * places
        self._empty: set[int] = set()

    @property
    def places_left(self) -> int:
        """Places that a worker has, or gets."""
        return len(self._working) - len(self._empty)

    def opened(self, place: int) -> None:
        """The worker of the place has its stage open."""
        self._opening[place] = 0

    def made_row(self, place: int) -> None:
        """The worker of the place has made a row."""
        self._since_row = self._working[place] = 0

    def is_replaced(self, place: int, why: str, *, was_open: bool) -> bool:
        """Counts a death; whether another worker takes the place, which else stays empty.

        Raises `StageStopped` where no place is left, or workers do nothing but die.
        """
        self._since_row += 1
        (self._working if was_open else self._opening)[place] += 1
        if self._since_row >= MAX_DEATHS:
            raise StageStopped(
                f"{MAX_DEATHS} workers died one after the other, and none between them made a row; "
                f"the last one: {why} The same command continues."
            )
        if self._opening[place] < MAX_OPENING and self._working[place] < MAX_WORKING:
            return True
        self._empty.add(place)
        if not self.places_left:
            raise StageStopped(
                f"No worker is left, as each died time and again without a row; the last one: "
                f"{why} The same command continues."
            )
        return False
