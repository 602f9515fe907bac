import numpy as np
import pytest

from grain_jax.data.records import Record, ZeroShotSet
from grain_jax.zero_shot.scorers import (
    ClassTexts,
    TextBank,
    class_texts,
    global_scores,
    mixed_scores,
    region_scores,
    text_bank,
)


class NoImages:
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> Record:
        raise IndexError(index)


def zero_shot_set(**options) -> ZeroShotSet:
    return ZeroShotSet(**({"name": "set", "source": NoImages()} | options))


def unit(generator: np.random.Generator, *shape: int) -> np.ndarray:
    values = generator.normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_texts_follow_the_class_names_whatever_the_order_of_the_descriptions():
    texts = class_texts(
        zero_shot_set(
            class_names=("cat", "owl", "newt"),
            templates=("a {}", "the {}"),
            descriptions={"newt": ("wet",), "cat": ("furry", "small", "furry")},
            description_template="{name}, which is {}",
        )
    )
    assert texts == ClassTexts(
        names=(("a cat", "the cat"), ("a owl", "the owl"), ("a newt", "the newt")),
        descriptions=(
            ("cat, which is furry", "cat, which is small"),
            ("a owl", "the owl"),
            ("newt, which is wet",),
        ),
        regions=(("furry", "small"), ("owl",), ("wet",)),
        undescribed=("owl",),
        called=("cat", "owl", "newt"),
        described=(("furry", "small"), (), ("wet",)),
        templates=("a {}", "the {}"),
        description_template="{name}, which is {}",
    )


def test_texts_about_the_whole_image_replace_filled_descriptions():
    texts = class_texts(
        zero_shot_set(
            class_names=("a", "b"),
            descriptions={"a": ("x", "y"), "b": ("z",)},
            global_texts={"a": ("with x and y",)},
        )
    )
    assert texts.descriptions == (("with x and y",), ("z",))
    assert texts.regions == (("x", "y"), ("z",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ()}, "no classes"),
        ({"class_names": ("a", "b", "a")}, "'a' more than once"),
        ({"class_names": ("a",), "descriptions": {"b": ("x",)}}, "nearest of these: 'b'"),
        ({"class_names": ("a",), "global_texts": {"b": ("x",)}}, "describes 1 that are not"),
        ({"class_names": ("a",), "templates": ("no hole",)}, "exactly one"),
        ({"class_names": ("a",), "templates": ()}, "no prompt template"),
        ({"class_names": ("a",), "description_template": "{} and {}"}, "exactly one"),
    ],
)
def test_bad_sets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        class_texts(zero_shot_set(**options))


def test_a_bank_holds_each_text_once_and_no_empty_class():
    seen: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return np.eye(len(texts), dtype=np.float32)

    bank = text_bank(encode, [["x", "y"], ["y"], ["z", "x"]])
    assert seen == ["x", "y", "z"]
    assert [rows.tolist() for rows in bank.members] == [[0, 1], [1], [2, 0]]
    with pytest.raises(ValueError, match="Class 1 has no text"):
        text_bank(encode, [["x"], []])


def ragged_bank(generator: np.random.Generator) -> TextBank:
    embed = unit(generator, 9, 5)
    return TextBank(embed, tuple(np.array(r) for r in ([0, 3, 4], [8], [1, 2, 0, 7], [5, 6])))


@pytest.mark.parametrize("ensembling", ["embedding", "score"])
def test_classes_with_the_same_texts_tie_to_the_bit(ensembling):
    # 65 columns apart: a matrix product may compute the last ones in another way than the first.
    generator = np.random.default_rng(0)
    bank = TextBank(unit(generator, 67, 48), tuple(np.array(r) for r in (
        *([0, 1, 2], [3]), *([k] for k in range(4, 67)), [2, 0, 1], [3]
    )))  # fmt: skip
    image, regions = unit(generator, 37, 48), unit(generator, 6 * 5, 48).reshape(6, 5, 48)
    for scores in (
        global_scores(image, bank, ensembling=ensembling),
        region_scores(regions, bank, aggregation="max_over_queries"),
        region_scores(regions, bank, aggregation="max_over_descriptions"),
    ):
        np.testing.assert_array_equal(scores[:, 0], scores[:, -2])
        np.testing.assert_array_equal(scores[:, 1], scores[:, -1])
        assert len(np.unique(scores[0])) == 65


def test_classes_are_told_apart_by_every_bit():
    """Also by numbers behind the first, and by the sign of zero; without numbers they are alike."""
    embed = np.array([[0.0, 1], [0, 2], [-0.0, 1], [0, 1], [3, 1]], np.float32)
    bank = TextBank(embed, tuple(np.array([row]) for row in range(5)))
    assert bank.distinct[1].tolist() == [0, 1, 2, 0, 3]
    empty = TextBank(np.zeros((2, 0), np.float32), (np.array([0]), np.array([1])))
    assert empty.distinct[1].tolist() == [0, 0]


def test_global_scores_against_loops():
    generator = np.random.default_rng(0)
    bank, image = ragged_bank(generator), unit(generator, 6, 5)
    cosine = global_scores(image, bank, ensembling="score")
    embedding = global_scores(image, bank, ensembling="embedding")
    for n in range(6):
        for k, rows in enumerate(bank.members):
            cosines = [float(image[n] @ bank.embed[row]) for row in rows]
            assert cosine[n, k] == pytest.approx(np.mean(cosines), abs=1e-6)
            mean = bank.embed[rows].mean(axis=0)
            expected = image[n] @ mean / np.linalg.norm(mean)
            assert embedding[n, k] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="ensembling"):
        global_scores(image, bank, ensembling="median")


def test_region_scores_against_loops(monkeypatch):
    generator = np.random.default_rng(1)
    bank, regions = ragged_bank(generator), unit(generator, 7, 3, 5)
    monkeypatch.setattr("grain_jax.zero_shot.scorers.MAX_CELLS", 60)  # several blocks of images
    by_description = region_scores(regions, bank, aggregation="max_over_queries")
    by_query = region_scores(regions, bank, aggregation="max_over_descriptions")
    for n in range(7):
        for k, rows in enumerate(bank.members):
            cosines = [[float(q @ bank.embed[row]) for row in rows] for q in regions[n]]
            best_query = [max(column) for column in zip(*cosines, strict=True)]
            assert by_description[n, k] == pytest.approx(np.mean(best_query), abs=1e-6)
            best_description = [max(row) for row in cosines]
            assert by_query[n, k] == pytest.approx(np.mean(best_description), abs=1e-6)
    with pytest.raises(ValueError, match="aggregation"):
        region_scores(regions, bank, aggregation="max")


def test_the_two_region_scores_differ_where_a_query_sees_nothing():
    # Two queries; class 0 is described by both, class 1 by the first twice.
    bank = TextBank(np.eye(3, dtype=np.float32), (np.array([0, 1]), np.array([0, 0])))
    regions = np.eye(3, dtype=np.float32)[None, [0, 2]]  # query 1 shows something else
    by_description = region_scores(regions, bank, aggregation="max_over_queries")
    by_query = region_scores(regions, bank, aggregation="max_over_descriptions")
    assert by_description.tolist() == [[0.5, 1.0]]
    assert by_query.tolist() == [[0.5, 0.5]]


def test_alpha_is_the_share_of_the_whole_image():
    whole, regions = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 0.5]], np.float32)
    assert mixed_scores(whole, regions, 1.0).tolist() == [[1.0, 0.0]]
    assert mixed_scores(whole, regions, 0.25).tolist() == [[0.25, 0.375]]
    with pytest.raises(ValueError, match="alpha"):
        mixed_scores(whole, regions, 1.5)
