"""RoboShot against a QR decomposition in float64."""

import numpy as np
from random_banks import banks_of, embedding, random_images, scores_of

from grain_jax.zero_shot.debiased import directions

NAMES = ("owl", "wren", "jay")
REJECT = [["on land", "on water"], ["by day", "at night"]]
ACCEPT = [["a beak", "a snout"], ["feathers", "fur"]]


def basis(pairs) -> np.ndarray:
    """Orthonormal columns by QR."""
    differences = [embedding(a).astype(np.float64) - embedding(b) for a, b in pairs]
    return np.linalg.qr(np.stack(differences, axis=1))[0]


def by_name(image: np.ndarray) -> np.ndarray:
    prompts = [[embedding(t.format(n)) for t in ("a {}.", "the {}", "one {}")] for n in NAMES]
    names = np.mean(prompts, axis=1, dtype=np.float64)
    return image @ (names / np.linalg.norm(names, axis=1, keepdims=True)).T


def test_directions_are_removed_and_others_added_one_after_the_other():
    images = random_images()
    for shared in ({"reject": REJECT}, {"reject": REJECT, "accept": ACCEPT}):
        found = scores_of("roboshot", NAMES, images, shared=shared)
        changed = images.image.astype(np.float64)
        for v in basis(REJECT).T:
            changed = np.stack([x - (x @ v) * v for x in changed])
            changed /= np.linalg.norm(changed, axis=1, keepdims=True)
        for v in basis(ACCEPT).T if "accept" in shared else ():
            changed = np.stack([x + (x @ v) * v for x in changed])
            changed /= np.linalg.norm(changed, axis=1, keepdims=True)
        np.testing.assert_allclose(found, by_name(changed), atol=1e-5)
        assert np.abs(found - by_name(images.image)).max() > 0.01


def test_a_direction_that_others_span_is_left_out():
    repeated = [*REJECT, REJECT[0][::-1]]
    bank = banks_of("roboshot", NAMES, shared={"reject": repeated})["reject"]
    found = directions(bank)
    assert found.shape == (2, 8)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-12)


def test_what_was_removed_no_longer_tells_images_apart():
    images = random_images()
    along = images.image + 0.5 * basis(REJECT)[:, 0]
    moved = type(images)((along / np.linalg.norm(along, axis=1, keepdims=True)).astype(np.float32))
    shared = {"reject": REJECT}
    np.testing.assert_allclose(
        scores_of("roboshot", NAMES, moved, shared=shared),
        scores_of("roboshot", NAMES, images, shared=shared),
        atol=1e-5,
    )
