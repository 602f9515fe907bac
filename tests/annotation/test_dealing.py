"""Images dealt to workers that die: each image is done once, or given up alone."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.dealing import Dealer


class Worker:
    """Does what it is given, in any order, and dies of what is fatal."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.ends = False


def work(num_images, workers, room, fatal, choose, accidents):
    """Runs workers until all is done: the images that were done and given up, in order.

    choose: which of several things happens next. accidents: steps at which a worker dies of itself.
    """
    images = [f"{number}.png" for number in range(num_images)]
    dealer = Dealer(iter(images))
    there = {number: Worker() for number in range(workers)}
    done, given_up = [], []
    for step in itertools.count():
        assert step < 10_000, "it never ends"
        for number, worker in there.items():
            if worker.ends:
                assert dealer.deal(number, room) == ([], False)
                continue
            dealt = dealer.deal(number, room)
            if dealt is not None:
                worker.images += dealt[0]
                worker.ends = dealt[1]
                assert len(worker.images) <= room or worker.ends
        if dealer.is_over:
            return images, done, given_up
        number = [each for each in there if there[each].images or there[each].ends]
        number = number[choose(len(number))]
        worker = there[number]
        # It dies of a fatal image once that is among those it works on.
        if step in accidents or fatal.intersection(worker.images[:3]):
            lost = dealer.died(number)
            given_up += [] if lost is None else [lost]
            there[number] = Worker()
        elif worker.images:
            image = worker.images.pop(choose(len(worker.images)) if len(fatal) == 0 else 0)
            assert dealer.done(number, image)
            assert not dealer.done(number, image)
            done.append(image)
        else:
            dealer.ended(number)
            there[number] = Worker()


@given(
    num_images=st.integers(0, 40),
    workers=st.integers(1, 4),
    room=st.integers(1, 12),
    accidents=st.sets(st.integers(0, 60), max_size=6),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_accidents_lose_and_repeat_no_image(num_images, workers, room, accidents, random):
    images, done, given_up = work(
        num_images, workers, room, set(), lambda count: random.randrange(count), accidents
    )
    assert sorted(done + given_up) == sorted(images)
    # An image is given up only after a group, and it alone, have died.
    assert len(given_up) <= len(accidents) / 2


@given(
    num_images=st.integers(1, 40),
    workers=st.integers(1, 4),
    room=st.integers(1, 12),
    fatal=st.sets(st.integers(0, 39), max_size=3),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_only_fatal_images_are_given_up(num_images, workers, room, fatal, random):
    names = {f"{number}.png" for number in fatal if number < num_images}
    images, done, given_up = work(
        num_images, workers, room, names, lambda count: random.randrange(count), set()
    )
    assert sorted(given_up) == sorted(names)
    assert sorted(done) == sorted(set(images) - names)


def test_a_worker_is_given_more_as_rows_come_back():
    dealer = Dealer(iter("abcdef"))
    assert dealer.deal(0, 3) == (["a", "b", "c"], False)
    assert dealer.deal(0, 3) == ([], False)
    assert dealer.done(0, "b")
    assert dealer.deal(0, 3) == (["d"], False)
    assert dealer.deal(1, 3) == (["e", "f"], True)
    assert dealer.deal(0, 4) == ([], True)
    assert dealer.deal(2, 3) is None
    for worker, images in ((0, "acd"), (1, "ef")):
        for image in images:
            assert dealer.done(worker, image)
        assert not dealer.is_over
        dealer.ended(worker)
    assert dealer.is_over


def test_images_of_a_dead_worker_wait_for_a_session_of_their_own():
    dealer = Dealer(iter("abcdefgh"))
    assert dealer.deal(0, 2) == (["a", "b"], False)
    assert dealer.deal(1, 2) == (["c", "d"], False)
    assert dealer.died(0) is None
    assert dealer.done(1, "c")
    assert dealer.deal(1, 2) == ([], True)  # so that it takes them soon
    assert dealer.done(1, "d")
    dealer.ended(1)
    assert dealer.deal(1, 2) == (["a", "b"], True)
    assert dealer.died(1) is None
    assert dealer.deal(1, 2) == (["a"], True)
    assert dealer.deal(2, 2) == (["b"], True)
    assert dealer.died(1) == "a"
    assert not dealer.done(1, "a")  # a row that comes late is not counted twice
