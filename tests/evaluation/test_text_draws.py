"""Several draws of random texts: means over draws, their spread, and what `compare` says of it."""

import statistics

import numpy as np
import pytest
from random_banks import encode, random_images, scores_of
from toy_encoder import ToySource, record, toy_encoder

from grain_jax.config import TrainConfig
from grain_jax.config.validation import problems
from grain_jax.data.records import ZeroShotSet
from grain_jax.evaluate_compare import comparison_table
from grain_jax.evaluate_options import Options, check_draws
from grain_jax.evaluation.comparison import compare_methods, draws_sd, read_predictions
from grain_jax.evaluation.predictions import PredictionsFile, note_draws
from grain_jax.evaluation.tables import result_tables
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.encoder import ImageFeatures
from grain_jax.results import from_logged, logged
from grain_jax.zero_shot.methods import drawn_methods
from grain_jax.zero_shot.waffle import swapped_with, waffle_descriptions

NAMES = ("owl", "great tit", "jay", "finch", "crow")
DESCRIPTIONS = {name: (f"{name} bill", f"{name} tail") for name in NAMES}
METHODS = ("name", "waffle", "description", "swapped_description", "random_named_description")
COUNT, DRAWS = 40, 3


def birds() -> ZeroShotSet:
    records = [record(f"{i}.png", "red", label=NAMES[i % 5]) for i in range(COUNT)]
    return ZeroShotSet(
        name="birds",
        source=ToySource(*records),
        class_names=NAMES,
        templates=("a {}.", "the {}", "one {}"),
        descriptions=DESCRIPTIONS,
    )


@pytest.fixture
def measure(monkeypatch):
    """Evaluates random embeddings of texts and images at alpha 0.5."""
    encoder = toy_encoder()
    monkeypatch.setattr(encoder, "texts", lambda texts, *, kind: encode(list(texts), kind=kind))
    images = random_images(COUNT)
    features = ImageFeatures(image=images.image, regions=images.regions, boxes=None)

    def evaluated(**options):
        return evaluate_zero_shot(
            encoder, birds(), alphas=(0.5,), methods=METHODS, features=features, **options
        )

    return evaluated


def value(results, method, metric, alpha=None):
    return next(
        r for r in results if (r.method, r.metric, r.alpha) == (method, metric, alpha)
    ).value


def swapped_accuracy(draw: int) -> float:
    """By hand: each class scored by the descriptions of the one it is swapped with."""
    source = swapped_with([True] * 5, NAMES, draw)
    right = scores_of("description", NAMES, random_images(COUNT), 0.5, descriptions=DESCRIPTIONS)
    return float((right[:, source].argmax(axis=1) == np.arange(COUNT) % 5).mean())


def test_figures_are_means_over_draws(measure):
    results = measure(text_draws=DRAWS, details=True)
    expected = [swapped_accuracy(draw) for draw in range(DRAWS)]
    assert len(set(expected)) > 1  # or the mean would be that of any draw
    for draw, accuracy in enumerate(expected):
        found = value(results, "swapped_description", f"top1_draw{draw}", 0.5)
        assert found == pytest.approx(accuracy)
    mean = value(results, "swapped_description", "top1", 0.5)
    assert mean == pytest.approx(statistics.mean(expected))
    spread = value(results, "swapped_description", "top1_draws_sd", 0.5)
    assert spread == pytest.approx(statistics.stdev(expected))
    per_class = value(results, "swapped_description", "per_class", 0.5)
    assert per_class == pytest.approx(mean)  # as many images of every class
    assert not [r for r in results if r.method == "name" and r.metric.startswith("top1_draw")]


def test_the_first_draw_is_the_only_one_by_default(measure):
    one, several = measure(), measure(text_draws=2)
    for method, alpha in (("waffle", None), ("swapped_description", 0.5), ("name", None)):
        first = "top1" if method == "name" else "top1_draw0"
        assert value(one, method, "top1", alpha) == value(several, method, first, alpha)
    assert not [r for r in one if r.metric.startswith("top1_draw")]


def test_draws_are_different_texts():
    drawn = [waffle_descriptions(NAMES, seed) for seed in range(7)]
    assert len(set(drawn)) == 7
    permutations = [swapped_with([True] * 5, NAMES, seed) for seed in range(7)]
    assert len(set(map(tuple, permutations))) > 1
    assert all(k != other for one in permutations for k, other in enumerate(one))


def test_tables_and_logs_have_the_spread(measure):
    results = measure(text_draws=DRAWS, details=True)
    table = result_tables(results)[0]
    cells = {row[1]: row[2:] for row in table.rows}
    spread = value(results, "waffle", "top1_draws_sd")
    assert any(f"(sd {100 * spread:.1f}, 3 draws)" in cell for cell in cells["waffle: WaffleCLIP"])
    assert not any("draws" in cell for cell in cells["name"])
    assert "mean over draws" in table.meaning
    assert "drawn once" not in table.meaning
    once = result_tables(measure(details=True))[0].meaning
    assert "drawn once" in once
    assert "mean over draws" not in once
    by_name = [result for result in results if result.method in ("name", "random")]
    assert "draw" not in result_tables(by_name)[0].meaning
    found = {(r.method, r.metric, r.alpha): r.value for r in from_logged(logged(results))}
    assert found["waffle", "top1_draw2", None] == value(results, "waffle", "top1_draw2")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_compare_says_how_the_gap_spreads_over_draws(measure, tmp_path, suffix):
    path, draws = tmp_path / f"answers{suffix}", {}
    with PredictionsFile(path) as file:
        results = measure(
            text_draws=DRAWS,
            on_scores=file.of_set(birds(), logit_scale=10.0, draws=draws),
            on_draws=note_draws(draws),
        )
    answers = read_predictions(path)
    for measured, found in answers.items():
        method, _, alpha = measured.method.partition("/alpha")
        top1 = value(results, method, "top1", float(alpha) if alpha else None)
        assert np.mean(found.correct) == pytest.approx(top1, abs=1e-6)
    compared = compare_methods([answers], against="swapped_description")
    gap = next(one for one in compared if one.second == "description/alpha0.5")
    right = value(results, "description", "top1", 0.5)
    gaps = [right - swapped_accuracy(draw) for draw in range(DRAWS)]
    assert gap.draws == (3, 1)
    assert gap.difference.value == pytest.approx(statistics.mean(gaps), abs=1e-6)
    assert gap.draws_sd == pytest.approx(statistics.stdev(gaps), abs=1e-6)
    table = comparison_table([gap])
    assert f"(sd {100 * statistics.stdev(gaps):.1f}, 3 draws)" in table.rows[0][5]
    assert "over them (sd)" in table.meaning
    plain = compare_methods([answers], against="name")
    assert next(one for one in plain if one.second == "description/alpha0.5").draws_sd is None


def test_spread_of_two_drawn_methods_is_of_paired_draws():
    first, second = np.array([0.1, 0.5, 0.3]), np.array([0.2, 0.6, 0.4])
    assert draws_sd(first, second) == pytest.approx(0.0)
    assert draws_sd(first, second[:2]) is None
    assert draws_sd(first[:1], second) == pytest.approx(statistics.stdev(second))


def test_draws_of_methods_without_random_texts_are_refused(tmp_path):
    options = Options(checkpoint=tmp_path, text_draws=7)
    check_draws(options, ("name", "waffle"))
    with pytest.raises(ValueError, match="--text_draws=7 is of methods with random texts"):
        check_draws(options, ("name", "description"))
    assert set(drawn_methods(METHODS)) == {
        *("waffle", "swapped_description", "random_named_description")
    }
    check_draws(options, ("name", "wca"))
    config = TrainConfig()
    config.evaluation.text_draws = 0
    assert any("evaluation.text_draws" in problem for problem in problems(config))
