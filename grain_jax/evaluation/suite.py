"""What a run is measured by: during training on held-out data, and at its end on the test sets.

Nothing of a test set is looked at before the end: keep-best and the headline's alpha are decided on
the validation species of the world, or on the evaluation split of records.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from grain_jax.config import TrainConfig, WorldConfig
from grain_jax.data.records import Record, Source, ZeroShotSet
from grain_jax.data.sources import open_source
from grain_jax.evaluation.annotations import Annotations, read_annotations
from grain_jax.evaluation.constant_boxes import (
    ConstantBoxes,
    fit_constant_boxes,
    score_constant_boxes,
)
from grain_jax.evaluation.encode import Encoder, ImageFeatures, errors_about, evenly_spaced
from grain_jax.evaluation.folders import load_zero_shot
from grain_jax.evaluation.grounding import (
    box_scores,
    chosen_queries,
    cxcywh_to_xyxy,
    phrase_hits,
)
from grain_jax.evaluation.retrieval import retrieval, unique_texts
from grain_jax.evaluation.zero_shot import evaluate_zero_shot

BASELINE_IMAGES = 500  # training images that the constant boxes are fitted to
WAYS_OF_SPLIT = {  # held-out names were never heard: those of "unseen" show what chance looks like
    "validation": ("description",),
    "seen": ("name", "description", "name_and_regions"),
    "unseen": ("name", "description"),
}


def evaluate(
    encoder: Encoder,
    config: TrainConfig,
    *,
    final: bool,
    note: Callable[[str], None] = print,
) -> dict[str, float]:
    """Flat metrics, shares in [0, 1], such as "unseen/description/alpha0" or
    "dev/retrieval/mean_R@1".

    `final=False` (at intervals): at most `evaluation.max_images` of the held-out data.
    `final=True`: everything, with intervals, baselines and the folders of `evaluation.zero_shot`.
    Every process of a multi-host run must call it. Raises ValueError, with the name of the data and
    of the image, where one cannot be decoded or the model's embeddings are not finite.
    """
    match config.data.source:
        case "world":
            results = _world(encoder, config, final=final)
        case "records":
            results = _records(encoder, config, final=final)
        case unknown:
            raise ValueError(f"Unknown data.source {unknown!r}; choose 'world' or 'records'.")
    if final:
        for folder in config.evaluation.zero_shot:
            results |= _zero_shot(encoder, load_zero_shot(folder, note=note), config, details=True)
    return results


def check_inputs(config: TrainConfig) -> None:
    """Raises ValueError at the start of a run for data that its end would fail to find."""
    if config.data.eval_split or config.data.source == "world":
        split = config.data.eval_split if config.data.source == "records" else "validation"
        open_source(config.data, split, image_size=config.model.image_size)
    for folder in config.evaluation.zero_shot:
        load_zero_shot(folder, note=lambda _: None)


def best_metric_name(config: TrainConfig) -> str:
    """The metric of `evaluate(final=False)` that keep-best maximises; "" when nothing is held out.

    World: validation species by description, by regions as far as the model has them. Records: mean
    of R@1 both ways.
    """
    if config.evaluation.best_metric:
        return config.evaluation.best_metric
    if config.data.source == "world":
        alpha = min(config.evaluation.alphas) if config.model.kind == "grain" else 1.0
        return f"validation/description/alpha{alpha:g}"
    return f"{config.data.eval_split}/retrieval/mean_R@1" if config.data.eval_split else ""


def headline(results: dict[str, float], alphas: Sequence[float]) -> dict[str, float]:
    """Unseen species by description at the alpha that is best on the validation species; {} without
    both.
    """
    on_validation = {
        alpha: results[f"validation/description/alpha{alpha:g}"]
        for alpha in alphas
        if f"validation/description/alpha{alpha:g}" in results
    }
    if not on_validation:
        return {}
    alpha = max(on_validation, key=lambda a: on_validation[a])
    chosen = results[f"unseen/description/alpha{alpha:g}"]
    return {"headline/alpha": alpha, "headline/unseen_by_description": chosen}


def evaluate_grounding(
    features: ImageFeatures, truth: Annotations, encoder: Encoder, prefix: str
) -> dict[str, float]:
    """Box and phrase metrics of a model with regions; {} without regions or without true boxes."""
    if features.boxes is None or features.regions is None or not truth.phrases:
        return {}
    predicted = cxcywh_to_xyxy(features.boxes)
    boxes = box_scores(predicted, truth.boxes)
    embed = encoder.texts([phrase.text for phrase in truth.phrases], kind="description")
    chosen = chosen_queries(features.regions, embed, truth.phrases)
    images = np.array([phrase.image for phrase in truth.phrases], int)
    return {
        f"{prefix}/box_iou": boxes.iou,
        f"{prefix}/box_recall": boxes.recall,
        f"{prefix}/box_recall_ceiling": boxes.ceiling,
        f"{prefix}/phrase_accuracy": float(
            phrase_hits(predicted[images, chosen], truth.phrases).mean()
        ),
    }


def evaluate_retrieval(
    features: ImageFeatures, truth: Annotations, encoder: Encoder, prefix: str
) -> dict[str, float]:
    """Recall both ways over the images that have captions; {} when fewer than two have any."""
    captioned = [i for i, texts in enumerate(truth.captions) if texts]
    if len(captioned) < 2:
        return {}
    texts, text_rows, image_rows = unique_texts([truth.captions[i] for i in captioned])
    embed = encoder.texts(texts, kind="caption")
    recalls = retrieval(
        features.image[captioned], embed, text_rows=text_rows, image_rows=image_rows
    )
    recalls |= {"images": float(len(captioned)), "texts": float(len(texts))}
    return {f"{prefix}/retrieval/{name}": value for name, value in recalls.items()}


def _world(encoder: Encoder, config: TrainConfig, *, final: bool) -> dict[str, float]:
    from grain_jax.data.world import part_of_description

    size = encoder.preprocessing.image_size
    baseline = None
    if final and config.model.kind == "grain":
        baseline = _fitted_constants(
            open_source(config.data, config.data.train_split, image_size=size),
            encoder,
            num_boxes=config.model.decoder.num_queries,
            part_of=part_of_description,
        )
    results: dict[str, float] = {}
    for split in ("validation", "seen", "unseen") if final else ("validation",):
        if final:
            dataset = _drawn_set(config.data.world, split, None, size)
        else:
            world = json.dumps(asdict(config.data.world))
            dataset = _interval_set(world, split, config.evaluation.max_images, size)
        with errors_about(f"Split {split!r} of the world"):
            features = encoder.images(dataset.source)
        results |= _zero_shot(
            encoder, dataset, config, features=features, by=WAYS_OF_SPLIT[split], details=final
        )
        truth = read_annotations(dataset.source, encoder.preprocessing, caption_source="synthetic")
        results |= evaluate_grounding(features, truth, encoder, split)
        results |= evaluate_retrieval(features, truth, encoder, split)
        if baseline is not None and truth.phrases:
            results |= score_constant_boxes(baseline, truth, split)
    return results | (headline(results, config.evaluation.alphas) if final else {})


def _drawn_set(world: WorldConfig, split: str, limit: int | None, image_size: int) -> ZeroShotSet:
    """A set of the world, at most `limit` of its images, each drawn once."""
    from grain_jax.data.world import world_zero_shot_sets

    dataset = world_zero_shot_sets(world, image_size)[split]
    source = dataset.source if limit is None else evenly_spaced(dataset.source, limit)
    drawn = InMemory(tuple(source[i] for i in range(len(source))))
    return dataclasses.replace(dataset, source=drawn)


@functools.lru_cache(maxsize=1)
def _interval_set(world: str, split: str, limit: int, image_size: int) -> ZeroShotSet:
    """Kept, so that an interval of training draws nothing again; `world` is JSON, which hashes."""
    return _drawn_set(WorldConfig(**json.loads(world)), split, limit, image_size)


def _records(encoder: Encoder, config: TrainConfig, *, final: bool) -> dict[str, float]:
    split, size = config.data.eval_split, encoder.preprocessing.image_size
    if not split:
        return {}
    source = open_source(config.data, split, image_size=size)
    if not final:
        return evaluate_records(encoder, evenly_spaced(source, config.evaluation.max_images), split)
    training = open_source(config.data, config.data.train_split, image_size=size)
    return evaluate_records(encoder, source, split, training=training)


def evaluate_records(
    encoder: Encoder,
    source: Source,
    prefix: str,
    *,
    tasks: Sequence[str] = ("retrieval", "grounding"),
    training: Source | None = None,
) -> dict[str, float]:
    """Retrieval and grounding under "<prefix>/...", of what the records and the model have; with
    `training` also what constant boxes, fitted to its regions, would score.
    """
    with errors_about(f"Split {prefix!r}"):
        truth = read_annotations(source, encoder.preprocessing, caption_source="original")
        features = encoder.images(source)
    results: dict[str, float] = {}
    if "retrieval" in tasks:
        results |= evaluate_retrieval(features, truth, encoder, prefix)
    if "grounding" in tasks:
        results |= evaluate_grounding(features, truth, encoder, prefix)
        if training is not None and f"{prefix}/box_iou" in results and features.boxes is not None:
            baseline = _fitted_constants(training, encoder, num_boxes=features.boxes.shape[1])
            results |= {} if baseline is None else score_constant_boxes(baseline, truth, prefix)
    return results


def _fitted_constants(
    training: Source,
    encoder: Encoder,
    *,
    num_boxes: int,
    part_of: Callable[[str], str | None] | None = None,
) -> ConstantBoxes | None:
    """None where the training data has no boxes."""
    sample = evenly_spaced(training, BASELINE_IMAGES)
    with errors_about("Training images"):
        truth = read_annotations(sample, encoder.preprocessing, caption_source="original")
    return fit_constant_boxes(truth, num_boxes, part_of=part_of) if truth.phrases else None


def _zero_shot(encoder: Encoder, dataset: ZeroShotSet, config: TrainConfig, **options):
    return evaluate_zero_shot(
        encoder,
        dataset,
        alphas=config.evaluation.alphas,
        name_ensemble=config.evaluation.name_ensemble,
        region_score=config.evaluation.region_score,
        **options,
    )


@dataclass(frozen=True)
class InMemory:
    """Records that are kept, so that a drawn picture is drawn once in a run."""

    records: tuple[Record, ...]
    in_memory = True

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Record:
        return self.records[index]

    @property
    def labels(self) -> list[str]:
        return [record.label or "" for record in self.records]
