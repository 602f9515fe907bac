"""Every image comes out once, whatever fails, and no step runs ahead without bound."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grain_jax.annotation.backends.detector import ScoredBoxes
from grain_jax.annotation.backends.placement import PreparedImage
from grain_jax.annotation.detecting import BATCHES_AHEAD, MAX_FAILURES, Detecting
from grain_jax.annotation.run import StageStopped
from grain_jax.data.image_files import SkippedSample


def prepared(size: int) -> PreparedImage:
    return PreparedImage(np.zeros((size, 8, 3), np.uint8))


def scored(number: int) -> ScoredBoxes:
    return ScoredBoxes(np.zeros((1, 4), np.float32), np.full((1, 1), number, np.float32))


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def number_of(loaded) -> int:
    return int(loaded.image)


def detecting(images, *, detect=None, load=None, texts=None, batch_size=3, threads=2) -> Detecting:
    return Detecting(
        iter(images),
        texts=texts or (lambda image: [f"text of {image}"]),
        load=load or (lambda image: (prepared(8), f"hash of {image}")),
        detect=detect or (lambda batch: [scored(number_of(each)) for each in batch]),
        batch_size=batch_size,
        threads=threads,
    )


def taken(run: Detecting) -> list:
    try:
        return list(run)
    finally:
        run.close()


FATES = ("fine", "fine", "fine", "no text", "corrupt", "breaks the batch")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(FATES), st.sampled_from([8, 16])), max_size=25).filter(
        lambda images: sum(fate == FATES[-1] for fate, _ in images) < MAX_FAILURES
    ),
    st.integers(1, 5),
)
def test_every_image_comes_out_once_with_its_own_answer(images, batch_size):
    def texts(image):
        if images[int(image)][0] == "no text":
            raise SkippedSample("no text", image)
        return [f"text of {image}"]

    def load(image):
        fate, size = images[int(image)]
        if fate == "corrupt":
            raise SkippedSample("corrupt image", image)
        return prepared(size), f"hash of {image}"

    def detect(batch):
        assert len({each.prepared.pixels.shape for each in batch}) == 1
        assert len(batch) <= batch_size
        if any(images[number_of(each)][0] == "breaks the batch" for each in batch):
            raise RuntimeError("odd image")
        return [scored(number_of(each)) for each in batch]

    run = detecting(
        numbered(len(images)), texts=texts, load=load, detect=detect, batch_size=batch_size
    )
    found = taken(run)
    assert Counter(each.loaded.image for each in found) == Counter(numbered(len(images)))
    errors = {
        "no text": "no text: ",
        "corrupt": "corrupt image: ",
        "breaks the batch": "detector failed: RuntimeError: odd image",
    }
    for each in found:
        fate = images[int(each.loaded.image)][0]
        if fate == "fine":
            assert each.error is None
            assert each.scored.scores[0, 0] == int(each.loaded.image)
            assert each.loaded.image_hash == f"hash of {each.loaded.image}"
            assert each.loaded.texts == (f"text of {each.loaded.image}",)
        else:
            assert each.scored is None
            assert each.error.startswith(errors[fate])
    assert run.time.images == sum(fate == "fine" for fate, _ in images)


def test_a_batch_too_large_for_the_memory_is_halved_from_then_on():
    sizes = []

    def detect(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return [scored(number_of(each)) for each in batch]

    found = taken(detecting(numbered(40), detect=detect, batch_size=8))
    assert [each.error for each in found] == [None] * 40
    assert sizes[:4] == [8, 4, 2, 2]
    assert sizes[-5:] == [2] * 5


def test_a_detector_that_always_fails_stops_the_run():
    def detect(batch):
        raise RuntimeError("no kernel image")

    run = detecting(numbered(200), detect=detect)
    found = []
    with pytest.raises(StageStopped, match=rf"{MAX_FAILURES} images.*no kernel image"):
        found.extend(run)
    run.close()
    assert len(found) == MAX_FAILURES - 1
    assert all("no kernel image" in each.error for each in found)


def test_many_odd_images_among_others_do_not_stop_the_run():
    def detect(batch):
        if number_of(batch[0]) % 2:
            raise RuntimeError("odd image")
        return [scored(number_of(each)) for each in batch]

    count = 4 * MAX_FAILURES
    found = taken(detecting(numbered(count), detect=detect, batch_size=1))
    assert sum(each.error is not None for each in found) == count // 2
    assert len(found) == count


def test_a_device_that_fails_stops_the_run_at_once():
    def detect(batch):
        raise RuntimeError("CUDA error: device-side assert triggered")

    run = detecting(numbered(50), detect=detect)
    with pytest.raises(StageStopped, match=r"device-side assert.*same command continues"):
        list(run)
    run.close()


def test_an_error_that_is_no_images_is_raised():
    def texts(image):
        if image == "7":
            raise ValueError("the annotations are damaged")
        return ["a"]

    run = detecting(numbered(200), texts=texts)
    with pytest.raises(ValueError, match="damaged"):
        list(run)
    run.close()


def test_no_step_runs_far_ahead_and_closing_ends_all_threads():
    before = threading.active_count()
    loaded, gate = [], threading.Event()

    def load(image):
        loaded.append(image)
        return prepared(8), ""

    def detect(batch):
        gate.wait(30)
        return [scored(number_of(each)) for each in batch]

    run = detecting(numbered(10_000), load=load, detect=detect)
    results = iter(run)
    starter = threading.Thread(target=lambda: next(results))
    starter.start()
    threading.Event().wait(0.5)
    # In the queue, in the detector, waiting for a batch, and one that waits for room.
    assert 3 <= len(loaded) <= 2 * (BATCHES_AHEAD * 3 + 2)
    gate.set()
    starter.join()
    run.close()
    assert threading.active_count() == before
    assert len(loaded) < 500


def test_a_run_that_was_not_begun_can_be_closed():
    run = detecting(numbered(3))
    run.close()
