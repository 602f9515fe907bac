"""Top-1 by texts and examples, by weight of the examples and by which classes have what.

    python tests/benchmarks/example_weight.py --checkpoint=RUN,RUN [--split=seen | --data=IMAGES]

Without --data: drawn birds of the --split. Each draw takes so many examples of each
class and tests on the rest, at most 100 images a class. A line is the mean over checkpoints and
draws. `rest by texts`, `rest by examples`: half of the classes, drawn anew, have texts and
examples or examples alone, the others texts alone; accuracy by texts alone and so, of all, of the
first and of the second. `N of K, S each, both` (or `examples`): the same accuracies where N classes
alone have S examples each, over 50 draws.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import grain_jax
from grain_jax.command_line import parse
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.records import Labelled, ZeroShotSet
from grain_jax.data.synthetic_birds.source import SyntheticBirdSource, bird_zero_shot_sets
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.examples import BOTH, EXAMPLES
from grain_jax.zero_shot.examples import EXAMPLE_WEIGHT, fit_examples, tells_nothing
from grain_jax.zero_shot.method import Images, Support
from grain_jax.zero_shot.methods import METHODS, encode_banks
from grain_jax.zero_shot.scorers import class_texts

SHOTS, WEIGHTS, MAX_TESTED = (1, 4, 16), (0.0, 0.25, 0.5, 0.75, 1.0), 100
FEW, FEW_SHOTS, FEW_DRAWS = (1, 2, 5, 10), (1, 2), 50  # classes, examples of each, draws


@dataclass
class Options:
    """What to measure."""

    checkpoint: str  # commas between several
    data: Path | None = None
    descriptions: str = ""
    split: str = "unseen"  # of the drawn birds: unseen or seen
    images: int = 1600  # of the drawn birds
    draws: int = 5


def labels_of(dataset: ZeroShotSet) -> np.ndarray:
    """Class of each image, without drawing it."""
    source = dataset.source
    if isinstance(source, SyntheticBirdSource):
        names = [source.species_of(i).name for i in range(len(source))]
    else:
        assert isinstance(source, Labelled)
        names = list(source.labels)
    position = {name: k for k, name in enumerate(dataset.class_names)}
    return np.array([position[name] for name in names])


def draw(labels: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the examples and of the tested images."""
    rng = np.random.default_rng([shots, seed])
    shown, tested = [], []
    for k in range(labels.max() + 1):
        rows = rng.permutation(np.flatnonzero(labels == k))
        shown += rows[:shots].tolist()
        tested += rows[shots:][:MAX_TESTED].tolist()
    return np.array(shown), np.array(tested)


def parts(before: np.ndarray, after: np.ndarray, inside: np.ndarray) -> list[float]:
    """Accuracies of all images, of those inside and of those outside, each before and after."""
    chosen_rows = np.ones(len(inside), bool), inside, ~inside
    return [float(one[some].mean()) for some in chosen_rows for one in (before, after)]


def of_few(
    scores: np.ndarray, image: np.ndarray, labels: np.ndarray, logit_scale: float
) -> dict[tuple[str, str], np.ndarray]:
    """`parts` where few classes have examples, by what is had, [draws, 6]."""
    num_classes, found = scores.shape[1], {}
    cases = [(few, shots, kind) for few in FEW for shots in FEW_SHOTS for kind in (BOTH, EXAMPLES)]
    for few, shots, kind in cases:
        if tells_nothing(few * shots, num_classes) and kind == EXAMPLES:
            continue  # refused
        values = []
        for seed in range(FEW_DRAWS):
            rng = np.random.default_rng([few, shots, seed])
            classes = rng.permutation(num_classes)[:few]
            of = [rng.permutation(np.flatnonzero(labels == k))[:shots] for k in classes]
            shown = np.concatenate(of)
            tested = np.setdiff1d(np.arange(len(labels)), shown)
            has_texts = np.ones(num_classes, bool)
            has_texts[classes] = kind == BOTH
            fitted = fit_examples(
                scores[shown],
                Support(image[shown], labels[shown]),
                has_texts,
                weight=EXAMPLE_WEIGHT,
                logit_scale=logit_scale,
            )
            answers = fitted(scores[tested], image[tested]).argmax(axis=1)
            before = scores[tested].argmax(axis=1) == labels[tested]
            inside = np.isin(labels[tested], classes)
            values.append(parts(before, answers == labels[tested], inside))
        found[f"{few} of {num_classes}, {shots} each", kind] = np.array(values)
    return found


def measure(
    options: Options, checkpoint: str
) -> tuple[
    dict[tuple[str, int], np.ndarray],
    dict[tuple[str, int, str], np.ndarray],
    dict[tuple[str, str, str], np.ndarray],
]:
    """Accuracies by texts and shots, [draws, weights], of mixed classes, [draws, 6], and of few
    classes with examples, [draws, 6].
    """
    loaded = grain_jax.load(checkpoint, calibration="none").loaded
    settings = loaded.config.evaluation
    if options.data is None:
        birds = dataclasses.replace(
            loaded.config.data.synthetic_birds, num_eval_images=options.images
        )
        dataset = bird_zero_shot_sets(birds, loaded.config.model.image_size)[options.split]
    else:
        dataset = load_zero_shot(options.data, descriptions=options.descriptions)
    encoder = Encoder.from_bundle(loaded)
    features = encoder.images(dataset.source)
    images, labels = Images(features.image, features.regions), labels_of(dataset)
    banks = encode_banks(
        encoder.texts,
        class_texts(dataset),
        methods=("name", "description"),
        has_regions=loaded.has_regions,
        prompt_ensembling=settings.prompt_ensembling,
        region_aggregation=settings.region_aggregation,
    )
    kinds = {"name": METHODS["name"].fit(banks)(images, None)}
    if "descriptions" in banks.banks:
        for alpha in (1.0, 0.5) if loaded.has_regions else (1.0,):
            fitted = METHODS["description"].fit(banks)
            kinds[f"description, alpha {alpha:g}"] = fitted(images, alpha)
    num_classes = len(dataset.class_names)
    weights, mixed, few = {}, {}, {}
    for kind, scores in kinds.items():
        for key, values in of_few(scores, features.image, labels, encoder.logit_scale).items():
            few[kind, *key] = values
        for shots in SHOTS:
            found, of_halves = [], {"rest by texts": [], "rest by examples": []}
            for seed in range(options.draws):
                shown, tested = draw(labels, shots, seed)

                def top1(rows, has_texts, weight, scores=scores, tested=tested):
                    classes = fit_examples(
                        scores[rows],
                        Support(features.image[rows], labels[rows]),
                        has_texts,
                        weight=weight,
                        logit_scale=encoder.logit_scale,
                    )
                    best = classes(scores[tested], features.image[tested]).argmax(axis=1)
                    return best == labels[tested]

                everything = np.ones(num_classes, bool)
                found.append([top1(shown, everything, weight).mean() for weight in WEIGHTS])
                half = np.zeros(num_classes, bool)
                chosen = np.random.default_rng([3, seed]).permutation(num_classes)
                half[chosen[: num_classes // 2]] = True
                rows, inside = shown[half[labels[shown]]], half[labels[tested]]
                for name, has_texts in (("rest by texts", everything), ("rest by examples", ~half)):
                    right = top1(rows, has_texts, EXAMPLE_WEIGHT)
                    before = scores[tested].argmax(axis=1) == labels[tested]
                    of_halves[name].append(parts(before, right, inside))
            weights[kind, shots] = np.array(found)
            for name, values in of_halves.items():
                mixed[kind, shots, name] = np.array(values)
    return weights, mixed, few


def line(name: str, values: list[np.ndarray]) -> str:
    """Means over checkpoints and draws, and the largest spread over draws of a checkpoint."""
    means = 100 * np.mean([value.mean(axis=0) for value in values], axis=0)
    spread = 100 * np.max([value.std(axis=0, ddof=1) for value in values])
    return f"| {name} | " + " | ".join(f"{mean:.1f}" for mean in means) + f" | {spread:.1f} |"


def main() -> None:
    """Prints three tables in Markdown."""
    options = parse(Options, None, command="example_weight", description=__doc__ or "")
    measured = [measure(options, checkpoint) for checkpoint in options.checkpoint.split(",")]
    for tables in zip(*measured, strict=True):
        for key in tables[0]:
            print(line(", ".join(map(str, key)), [table[key] for table in tables]), flush=True)


if __name__ == "__main__":
    main()
