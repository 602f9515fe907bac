"""Methods with a second pass, from images to accuracies."""

import dataclasses
import functools

import numpy as np
from toy_encoder import ToySource, bird_set, toy_encoder

from grain_jax.data.image_variants import VARIANTS, ImageVariants, RandomCrops, with_crops
from grain_jax.data.records import Record
from grain_jax.evaluation.left_out import LeftOut, left_out_sentences, note_left_out
from grain_jax.evaluation.tables import result_tables
from grain_jax.evaluation.variants import VariantEmbeddings, possible_variants
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.array_store import ArrayStore
from grain_jax.inference.cached_encoder import CachedEncoder
from grain_jax.results import from_logged, logged
from grain_jax.zero_shot.method import Images
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import class_texts

SECOND_PASS = ("wca", "gc_clip", "fgvp")
NOT_TOGETHER = {"alphas": (1.0,), "details": True}


def noisy_birds(count: int = 7):
    """Images whose pixels all differ, of classes called by colours, which the toy can read."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, size=(count, 12, 16, 3), dtype=np.uint8)
    names = ("red", "blue")
    records = [Record(str(i), image, label=names[i % 2]) for i, image in enumerate(images)]
    described = {"red": ("green part", "red part"), "blue": ("blue part",)}
    return bird_set(source=ToySource(*records), class_names=names, descriptions=described)


def by_hand(dataset, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Every variant of every image: the toy's embedding is the first pixel of the square."""
    found = {}
    for name, kind in VARIANTS.items():
        source = ImageVariants(dataset.source, kind, toy_encoder().preprocessing, boxes)
        pixels = np.array([source[i].image[0, 0] for i in range(len(source))], np.float64)
        embed = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        found[name] = embed.reshape(len(dataset.source), -1, 3).astype(np.float32)
    return found


def test_scores_are_those_of_variants_encoded_one_by_one(monkeypatch):
    for module in ("variants", "zero_shot"):
        monkeypatch.setattr(f"grain_jax.evaluation.{module}.BLOCK_IMAGES", 3)
    dataset, encoder = noisy_birds(), toy_encoder(batch_size=64)
    scores: dict[str, list[np.ndarray]] = {}

    def keep(method, alpha, start, values, labels):
        scores.setdefault(method, []).append(values)

    evaluate_zero_shot(encoder, dataset, methods=SECOND_PASS, on_scores=keep, **NOT_TOGETHER)
    features = encoder.images(dataset.source)
    assert features.boxes is not None
    images = Images(features.image, features.regions, by_hand(dataset, features.boxes))
    texts = class_texts(dataset)
    banks = encode_banks(encoder.texts, texts, methods=SECOND_PASS, has_regions=True)
    assert set(scores) == set(SECOND_PASS)
    for name, found in scores.items():
        expected = METHODS[name].fit(banks)(images, None)
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


def test_blocks_are_those_of_the_set_whatever_rows_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("grain_jax.evaluation.variants.BLOCK_IMAGES", 3)
    dataset, store = noisy_birds(), ArrayStore(tmp_path)
    encoder = CachedEncoder.of(toy_encoder(batch_size=64), store)
    boxes = encoder.images(dataset.source).boxes
    assert boxes is not None
    expected = by_hand(dataset, boxes)
    variants = VariantEmbeddings(encoder, dataset.source, boxes, VARIANTS)
    assert (encoder.read_variants, encoder.encoded_variants) == (0, 0)  # none was asked for
    for start, stop in ((0, 2), (2, 5), (5, 9)):
        for name, found in variants.rows(start, stop).items():
            np.testing.assert_allclose(found, expected[name][start:stop], atol=1e-6)
    assert (encoder.read_variants, encoder.encoded_variants) == (0, 7 * (60 + 10 + 2))
    again = CachedEncoder.of(toy_encoder(batch_size=64), store)
    VariantEmbeddings(again, dataset.source, boxes, VARIANTS).rows(0, 7)
    assert (again.read_variants, again.encoded_variants) == (7 * (60 + 10 + 2), 0)


def test_only_what_a_method_looks_at_is_encoded(tmp_path):
    encoder = CachedEncoder.of(toy_encoder(batch_size=64), ArrayStore(tmp_path))
    dataset = noisy_birds(2)
    evaluate_zero_shot(encoder, dataset, methods=("name", "wca_regions"), **NOT_TOGETHER)
    assert encoder.encoded_variants == 0
    results = evaluate_zero_shot(encoder, dataset, methods=("name", "fgvp"), **NOT_TOGETHER)
    assert encoder.encoded_variants == 4  # two boxes of two images
    assert {r.method: r.value for r in results if r.metric == "passes"} == {"fgvp": 3.0}


def test_tables_say_how_often_an_image_is_encoded():
    results = evaluate_zero_shot(
        toy_encoder(batch_size=64), noisy_birds(2), methods=("name", *SECOND_PASS), **NOT_TOGETHER
    )
    titles = [row[1] for row in result_tables(results)[0].rows]
    assert titles == [
        "name",
        "wca (random crops), encodes each image 61 times",
        "gc_clip (crops at its boxes), encodes each image 11 times",
        "fgvp (blur outside its boxes), encodes each image 3 times",
    ]
    assert [r for r in from_logged(logged(results)) if r.metric == "passes" and r.n != 2] == []
    assert logged(results)["birds/wca/passes"] == 61


def test_crops_follow_their_numbers(tmp_path):
    """Those that are encoded, kept, counted and told."""
    encoder, dataset = (
        CachedEncoder.of(toy_encoder(batch_size=64), ArrayStore(tmp_path)),
        noisy_birds(2),
    )
    kinds = with_crops({"number": 3, "smallest": 0.7})
    assert kinds["random_crops"] == RandomCrops(3, 0.7, 0.9, 0)
    measure = functools.partial(
        evaluate_zero_shot, encoder, dataset, methods=("wca",), **NOT_TOGETHER
    )
    results = measure(kinds=kinds)
    assert encoder.encoded_variants == 2 * 3
    assert [r.value for r in results if r.metric == "passes"] == [4.0]
    measure(kinds=with_crops({"number": 3, "smallest": 0.7, "seed": 1}))
    assert encoder.encoded_variants == 2 * 2 * 3  # others
    notes: list[str] = []
    note_left_out(
        ("wca",),
        dataset,
        has_regions=True,
        note=notes.append,
        left_out={},
        kinds=kinds,
        draws=5,
    )
    assert "through the encoder 16 times, not once, for wca (16)." in notes[0]


def test_draws_of_crops_have_the_seeds_that_follow():
    sentences = {"red": ("a red thing",), "blue": ("a blue thing",)}
    dataset = dataclasses.replace(noisy_birds(), further={"cupl": sentences})
    measure = functools.partial(
        evaluate_zero_shot,
        toy_encoder(batch_size=64),
        dataset,
        methods=("name", "wca_cupl", "gc_clip"),
        **NOT_TOGETHER,
    )
    numbers = {"number": 2, "seed": 4}

    def scores_of(**options):
        found = []
        results = measure(
            on_scores=lambda method, alpha, start, values, labels: (
                found.append(values) if method == "wca_cupl" else None
            ),
            **options,
        )
        return np.concatenate(found), {(r.method, r.metric): r.value for r in results}

    apart = [scores_of(kinds=with_crops(numbers | {"seed": seed})) for seed in (4, 5, 6)]
    assert not np.array_equal(apart[0][0], apart[1][0])
    first, values = scores_of(kinds=with_crops(numbers), text_draws=3)
    np.testing.assert_array_equal(first, apart[0][0])
    for draw, (_, alone) in enumerate(apart):
        assert values["wca_cupl", f"top1_draw{draw}"] == alone["wca_cupl", "top1"]
    mean = np.mean([alone["wca_cupl", "top1"] for _, alone in apart])
    np.testing.assert_allclose(values["wca_cupl", "top1"], mean)
    assert (values["wca_cupl", "passes"], values["gc_clip", "passes"]) == (1 + 3 * 2, 11)
    assert ("gc_clip", "top1_draw0") not in values


def test_a_model_without_boxes_has_random_crops_only():
    found = evaluate_zero_shot(
        toy_encoder(regions=False, batch_size=64),
        noisy_birds(2),
        methods=("name", *SECOND_PASS),
        **NOT_TOGETHER,
    )
    assert {r.method for r in found if r.metric == "per_class"} == {"name", "wca"}
    assert possible_variants(has_boxes=False) == {"random_crops"}
    notes: list[str] = []
    left_out: LeftOut = {}
    note_left_out(
        SECOND_PASS, noisy_birds(2), has_regions=False, note=notes.append, left_out=left_out
    )
    assert notes == [
        "birds: each of the 2 images goes through the encoder 61 times, not once, for wca (61).",
    ]
    assert left_out_sentences(left_out) == [
        "birds: 2 methods are left out: gc_clip needs a model with trained regions and a model "
        "with trained boxes; fgvp needs a model with trained boxes.",
    ]


def test_the_note_counts_what_methods_share_once():
    notes: list[str] = []
    methods = ("name", "wca", "gc_clip", "fgvp")
    options = {"has_regions": True, "note": notes.append, "left_out": {}}
    note_left_out(methods, noisy_birds(3), num_boxes=2, **options)
    assert notes == [
        "birds: each of the 3 images goes through the encoder 73 times, not once, for wca (61), "
        "gc_clip (11), fgvp (3)."
    ]
    note_left_out(("name",), noisy_birds(3), **options)
    assert len(notes) == 1
