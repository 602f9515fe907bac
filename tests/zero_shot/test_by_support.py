"""Methods that look at labelled images, against plain loops over the published formulas."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clustered_images import make_clusters

from grain_jax.zero_shot import by_adapter, by_support, classifier_injection
from grain_jax.zero_shot.examples import EXAMPLE_WEIGHT, fit_examples
from grain_jax.zero_shot.held_out import held_out
from grain_jax.zero_shot.method import ClassBanks, Images, Support
from grain_jax.zero_shot.scorers import make_class_texts, text_bank
from grain_jax.zero_shot.text_to_concept import fit_linear_map

CLASSES, WIDTH, SCALE = ("owl", "wren", "jay"), 5, 30.0


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts: list[str]) -> np.ndarray:
    seeds = [[*text.encode()] for text in texts]
    return unit(np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds]))


def banks() -> ClassBanks:
    texts = make_class_texts(CLASSES, templates=("a {}", "one {}"), descriptions={})
    return ClassBanks(texts, {"names": text_bank(encode, texts.names)}, logit_scale=SCALE)


def repeated(support: Support, times: list[int]) -> Support:
    """Each image as often as `times` has it for its class."""
    rows = np.repeat(np.arange(len(support.labels)), np.array(times)[support.labels])
    assert support.captions is not None
    return Support(support.image[rows], support.labels[rows], support.captions[rows])


def labelled(shots: int, *, spread: float = 0.5, seed: int = 3) -> Support:
    """`shots` images a class around a direction of its own, in mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(3), shots))
    image = np.eye(WIDTH)[labels] + spread * rng.normal(size=(len(labels), WIDTH))
    captions = np.eye(WIDTH)[labels] + spread * rng.normal(size=(len(labels), WIDTH))
    return Support(unit(image), labels, unit(captions))


def some_images(count: int = 6) -> Images:
    return Images(unit(np.random.default_rng(9).normal(size=(count, WIDTH))))


def name_vectors() -> list[np.ndarray]:
    """u(mean of the prompts)."""
    found = []
    for name in CLASSES:
        mean = sum(encode([f"{start} {name}"])[0].astype(float) for start in ("a", "one")) / 2
        found.append(mean / math.sqrt(sum(mean**2)))
    return found


def exact(image: np.ndarray) -> list[np.ndarray]:
    return [row.astype(float) for row in image]


def normal(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(float(vector @ vector))


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def test_examples_and_names_are_mixed_as_the_predictor_mixes_them():
    """`test_examples.py` has the formula."""
    support, images = labelled(4), some_images()
    names = np.stack(name_vectors())
    fitted = fit_examples(
        support.image @ names.T,
        support,
        np.ones(3, bool),
        weight=EXAMPLE_WEIGHT,
        logit_scale=SCALE,
    )
    expected = fitted(images.image @ names.T, images.image)
    found = by_support.by_examples(banks(), support=support)(images, None)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shots", [4, 12])  # fewer and more images than neighbours
def test_nearest_neighbours_vote_next_to_the_names(shots):
    support, images = labelled(shots), some_images()
    expected = []
    for x in exact(images.image):
        cosines = [(x @ f, k) for f, k in zip(exact(support.image), support.labels, strict=True)]
        votes = [0.0, 0.0, 0.0]
        for cosine, k in sorted(cosines, reverse=True)[:20]:
            votes[k] += math.exp(cosine / 0.07)
        named = softmax([SCALE * (x @ w) for w in name_vectors()])
        expected.append([0.5 * votes[k] / sum(votes) + 0.5 * named[k] for k in range(3)])
    found = by_support.by_neighbours(banks(), support=support)(images, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def gaussian_logits(support: Support, x: np.ndarray) -> list[float]:
    """x W + b of Gaussian discriminant analysis, sum by sum."""
    rows, count = exact(support.image), len(support.image)
    shots = [int((support.labels == k).sum()) for k in range(3)]
    means = [
        sum(rows[i] for i in range(count) if support.labels[i] == k) / shots[k] for k in range(3)
    ]
    scatter = np.zeros((WIDTH, WIDTH))
    for i in range(count):
        off = rows[i] - means[support.labels[i]]
        scatter += np.outer(off, off)
    sigma = scatter / (count - 1)
    trace = sum(sigma[d, d] for d in range(WIDTH))
    inverse = WIDTH * np.linalg.inv((count - 1) * sigma + trace * np.eye(WIDTH))
    return [
        float(x @ inverse @ mean + math.log(1 / 3) - mean @ inverse @ mean / 2) for mean in means
    ]


@pytest.mark.parametrize("shots", [2, 3])
def test_gda_adds_gaussian_logits_to_those_of_the_names(shots):
    support, images = labelled(shots), some_images()  # too few to hold some out
    expected = [
        [
            (SCALE * (x @ w) + 1.0 * added) / SCALE
            for w, added in zip(name_vectors(), gaussian_logits(support, x), strict=True)
        ]
        for x in exact(images.image)
    ]
    found = by_support.by_gaussians(banks(), support=support)(images, None)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_discriminant_is_that_of_the_likelihoods_of_gaussians():
    """Differences of its logits are those of log densities with the same covariance."""
    support = labelled(5)
    slopes, offsets = by_support.discriminant(support.image, support.labels, 3)
    means = by_support.class_means(support.image, support.labels, 3)
    off = support.image - means[support.labels]
    covariance = (off.T @ off + np.trace(off.T @ off) / 14 * np.eye(WIDTH)) / WIDTH
    for x in exact(some_images().image):
        logits = x @ slopes.T + offsets
        density = [-0.5 * (x - m) @ np.linalg.solve(covariance, x - m) for m in means]
        np.testing.assert_allclose(np.diff(logits), np.diff(density), atol=1e-9)


def test_the_weight_of_gda_is_chosen_by_held_out_images():
    """Names that are wrong lose all weight; images that say nothing get the least."""
    images, texts = some_images(), banks()
    support = labelled(8, spread=0.05)
    sharp = by_support.by_gaussians(texts, support=support)(images, None)
    fitted, held = held_out(support.labels, at_least=4) or (None, None)
    assert fitted is not None
    assert held is not None
    part = Support(support.image[fitted], support.labels[fitted])
    rates = []
    for weight in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        hits = 0
        for i in held:
            x = support.image[i].astype(float)
            added = gaussian_logits(part, x)
            scores = [
                SCALE * (x @ w) + weight * a for w, a in zip(name_vectors(), added, strict=True)
            ]
            hits += scores.index(max(scores)) == support.labels[i]
        rates.append((hits, -weight))
    assert max(rates)[0] > rates[0][0]  # the choice matters
    spreads = []  # of both fits over the labelled images, each image's about its mean
    for known in (part, support):
        added = np.array([gaussian_logits(known, x) for x in exact(support.image)])
        spreads.append(math.sqrt(((added - added.mean(axis=1, keepdims=True)) ** 2).mean()))
    assert spreads[0] > 1.1 * spreads[1]
    chosen = -max(rates)[1]
    weight = chosen * spreads[0] / spreads[1]
    expected = [
        [
            (SCALE * (x @ w) + weight * a) / SCALE
            for w, a in zip(name_vectors(), gaussian_logits(support, x), strict=True)
        ]
        for x in exact(images.image)
    ]
    np.testing.assert_allclose(sharp, expected, rtol=1e-5)
    assert chosen != by_support.DEFAULT_GDA_WEIGHT


def adapter_logits(support: Support, images: Images, weights, delta: float) -> list[list[float]]:
    """The formula of TIP-X, with the affinity of CapS-Adapter, and means over each class."""
    rows, captions, count = exact(support.image), None, len(support.image)
    if support.captions is not None:
        captions = exact(support.captions)

    def near(x, j):
        cosine = (1 - delta) * (x @ rows[j])
        cosine += delta * (x @ captions[j]) if captions is not None else 0.0
        return math.exp(-weights.beta * (1 - cosine))

    def signature(x):
        return softmax([x @ w / 0.5 for w in name_vectors()])

    def divergence(x, j):
        pairs = zip(signature(x), signature(rows[j]), strict=True)
        return sum(p * math.log(p / q) for p, q in pairs)

    every = [(i, j) for i in range(count) for j in range(count)]
    affinities = [near(rows[i], j) for i, j in every]
    furthest = max(divergence(rows[i], j) for i, j in every)
    low, high = min(affinities), max(affinities)
    found = []
    for x in exact(images.image):
        logits = [SCALE * (x @ w) for w in name_vectors()]
        for j in range(count):
            likeness = high + (low - high) * divergence(x, j) / furthest
            added = weights.alpha * near(x, j) + weights.gamma * likeness
            logits[support.labels[j]] += added / sum(support.labels == support.labels[j])
        found.append([logit / SCALE for logit in logits])
    return found


@pytest.mark.parametrize("times", [[5, 1, 2], [2, 2, 2]])
def test_copies_of_labelled_images_change_no_vote_and_no_likeness(times):
    """Neither a class with more images, nor more images of all, has more of the score."""
    support, images = labelled(3), some_images()
    weights = by_adapter.Weights(alpha=1.5, beta=4.0, gamma=0.7, delta=0.3)
    expected = by_adapter.Cache(banks(), support, weights).scores(images)
    found = by_adapter.Cache(banks(), repeated(support, times), weights).scores(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_class_with_most_of_the_labelled_images_does_not_get_the_others_answers():
    clusters = make_clusters(
        num_classes=10, per_class=60, width=32, spread=1.0, text_error=1.0, scale=100.0, seed=2
    )
    rows = [np.nonzero(clusters.labels == k)[0][: 40 if k == 0 else 4] for k in range(10)]
    given = np.concatenate(rows)
    tested = np.setdiff1d(np.arange(len(clusters.labels)), given)
    image, labels = clusters.images.image, clusters.labels
    score = by_adapter.by_tip_x(clusters.banks, support=Support(image[given], labels[given]))
    answers = score(Images(image[tested]), None).argmax(axis=1)
    named = (image[tested] @ clusters.vectors.T).argmax(axis=1)
    assert (answers == labels[tested]).mean() > (named == labels[tested]).mean()
    assert (answers == 0).sum() < 1.5 * (labels[tested] == 0).sum()


def test_weights_that_were_chosen_on_half_of_the_images_fit_all_of_them():
    """What is added to the names' scores varies over classes as much with both."""
    support, images = labelled(24), some_images(60)
    fitted, _ = held_out(support.labels, at_least=2) or (None, None)
    half = Support(support.image[fitted], support.labels[fitted])
    weights = by_adapter.Weights(alpha=1.5, beta=4.0)
    for part in ("votes", "likeness"):
        spreads = [
            getattr(by_adapter.Cache(banks(), known, weights), part)(images).std(axis=1).mean()
            for known in (half, support)
        ]
        assert 0.85 < spreads[0] / spreads[1] < 1.15, part


def test_images_that_say_nothing_leave_the_names_alone():
    rng = np.random.default_rng(0)
    names = np.stack(name_vectors())
    labels = np.arange(30) % 3
    image = unit(names[labels] + 0.2 * rng.normal(size=(30, WIDTH)))
    support = Support(image, labels)  # the names are right about all of them
    scores = SCALE * image @ names.T
    assert (scores.argmax(axis=1) == labels).all()
    found = by_adapter.search(banks(), support, start=by_adapter.DEFAULTS, deltas=())
    assert (found.alpha, found.gamma) == (0.0, 0.0)


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_tip_x_and_caps_adapter_add_votes_and_likeness(delta):
    support, images = labelled(3), some_images()
    weights = by_adapter.Weights(alpha=1.5, beta=4.0, gamma=0.7, delta=delta)
    found = by_adapter.Cache(banks(), support, weights).scores(images)
    expected = adapter_logits(support, images, weights, delta)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_image_a_class_leaves_the_default_weights():
    support, images = labelled(1), some_images()
    found = by_adapter.by_tip_x(banks(), support=support)(images, None)
    expected = adapter_logits(support, images, by_adapter.DEFAULTS, 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    captioned = by_adapter.by_caps_adapter(banks(), support=support)(images, None)
    expected = adapter_logits(support, images, by_adapter.DEFAULTS, 0.5)
    np.testing.assert_allclose(captioned, expected, atol=1e-5)


def test_weights_are_searched_on_held_out_images():
    """Captions that tell the classes apart, where images do not, get the weight."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), 8)
    directions = np.eye(WIDTH)[labels]
    background = np.zeros((24, WIDTH))
    background[:, 3:] = unit(rng.normal(size=(24, 2)))  # by which images are like each other
    image = unit(background + 0.3 * directions)
    support = Support(image, labels, unit(directions))
    texts = banks()
    texts = ClassBanks(texts.texts, texts.banks, logit_scale=1.0)
    found = by_adapter.search(
        texts, support, start=by_adapter.Weights(delta=0.0), deltas=by_adapter.DELTAS
    )
    assert found.delta > 0
    assert found.alpha in [8 * alpha for alpha in by_adapter.ALPHAS]  # of 8 images of a class
    assert found.beta in by_adapter.BETAS
    held = held_out(labels, at_least=2)
    assert held is not None
    rates = {}
    for delta in (0.0, found.delta):
        known = Support(image[held[0]], labels[held[0]], unit(directions)[held[0]])
        best = by_adapter.search(texts, support, start=by_adapter.Weights(), deltas=(delta,))
        scores = by_adapter.Cache(texts, known, best).scores(Images(image[held[1]]))
        rates[delta] = (scores.argmax(axis=1) == labels[held[1]]).mean()
    assert rates[found.delta] > 0.9
    assert rates[0.0] < 0.8, rates


def test_every_second_image_of_a_class_is_held_out():
    labels = np.array([2, 0, 1, 0, 1, 2, 0, 1, 2, 0])
    fitted, held = held_out(labels, at_least=3) or (None, None)
    assert fitted is not None
    assert held is not None
    assert sorted([*fitted, *held]) == list(range(10))
    assert fitted.tolist() == [0, 1, 2, 6, 7, 8]
    assert sorted(held.tolist()) == [3, 4, 5, 9]
    assert held_out(labels, at_least=4) is None
    many = np.repeat(np.arange(5), 2000)
    _, few = held_out(many, at_least=2) or (None, None)
    assert few is not None
    assert len(few) == 2000
    assert np.bincount(many[few]).tolist() == [400] * 5


def test_weights_are_injected_for_classes_without_images():
    """Weights that are a rotation of the descriptors: the network finds those of new classes."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    names = unit(rng.normal(size=(60, WIDTH)))
    weights = names @ rotation
    made = classifier_injection.injected_weights(names[:50], weights[:50], names[50:])
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    cosines = (made * weights[50:]).sum(axis=1)
    assert cosines.mean() > 0.9
    untrained = classifier_injection.injected_weights(names[:50], weights[:50], names[50:], steps=0)
    assert (untrained * weights[50:]).sum(axis=1).mean() < 0.5


def test_the_loss_of_injection_is_four_cosine_distances():
    """A class's descriptor and its weights, each made out of either."""
    rng = np.random.default_rng(1)
    widths, hidden = {"text": 4, "weights": 3}, 6
    params: dict[str, dict[str, jax.Array]] = {}
    for name, width in widths.items():
        for part, shape in (("encode", (width, hidden)), ("decode", (hidden, width))):
            kernel, bias = rng.normal(size=shape), rng.normal(size=shape[1])
            params[f"{part}_{name}"] = {
                "kernel": jnp.asarray(kernel, jnp.float32),
                "bias": jnp.asarray(bias, jnp.float32),
            }
    given = {name: rng.normal(size=(5, width)) for name, width in widths.items()}
    expected = 0.0
    for one, other in itertools.product(widths, widths):
        encoder, decoder = (
            {part: np.asarray(value, float) for part, value in params[name].items()}
            for name in (f"encode_{one}", f"decode_{other}")
        )
        for row in range(5):
            inside = given[one][row] @ encoder["kernel"] + encoder["bias"]
            made = np.maximum(inside, 0) @ decoder["kernel"] + decoder["bias"]
            expected += (1 - normal(made) @ normal(given[other][row])) / 5
    arrays = {name: jnp.asarray(values, jnp.float32) for name, values in given.items()}
    found = classifier_injection.loss(params, arrays["text"], arrays["weights"])
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)


def test_classes_with_images_keep_their_mean():
    support, images, texts = labelled(4), some_images(), banks()
    seen = Support(support.image[support.labels < 2], support.labels[support.labels < 2])
    found = classifier_injection.by_classifier_injection(texts, support=seen)(images, None)
    for k in range(2):
        mean = normal(seen.image[seen.labels == k].astype(float).mean(axis=0))
        np.testing.assert_allclose(found[:, k], images.image @ mean, atol=1e-6)
    names = np.stack(name_vectors())
    means = [normal(seen.image[seen.labels == k].astype(float).mean(axis=0)) for k in range(2)]
    made = classifier_injection.injected_weights(names[:2], np.stack(means), names[2:])
    np.testing.assert_allclose(found[:, 2], images.image @ made[0], atol=1e-4)


def test_a_linear_map_takes_embeddings_of_another_encoder_to_this_one():
    rng = np.random.default_rng(2)
    other = rng.normal(size=(40, 7))
    own = other @ rng.normal(size=(7, WIDTH)) + rng.normal(size=WIDTH)
    noisy = own + 0.1 * rng.normal(size=own.shape)
    fitted = fit_linear_map(other, noisy)
    # The normal equations with a column of ones.
    design = np.hstack([other, np.ones((40, 1))])
    solved = np.linalg.inv(design.T @ design) @ design.T @ noisy
    np.testing.assert_allclose(fitted.matrix, solved[:7], atol=1e-9)
    np.testing.assert_allclose(fitted.offset, solved[7], atol=1e-9)
    mapped = fitted(other[:3])
    for row in range(3):
        expected = other[row] @ solved[:7] + solved[7]
        np.testing.assert_allclose(mapped[row], normal(expected), atol=1e-9)
    with pytest.raises(ValueError, match="40 embeddings of the one encoder and 39"):
        fit_linear_map(other, own[:39])


@pytest.mark.parametrize(
    ("labels", "captions", "expected"),
    [
        ([0, 1, 2], False, {"support"}),
        ([0, 1, 2, 2], False, {"support", "several_shots"}),
        ([0, 1, 2], True, {"support", "support_captions"}),
        ([0, 0, 1], False, {"classes_without_images"}),
        ([0, 0, 0], False, set()),
    ],
)
def test_support_says_which_needs_it_fulfils(labels, captions, expected):
    image = unit(np.ones((len(labels), WIDTH)))
    support = Support(image, np.array(labels), image if captions else None)
    assert support.provides(3) == expected
