"""What a run is measured by: during training on held-out data, and at its end on the test sets.

No test set is looked at before the end unless the user names it in
`evaluation.zero_shot_during_training`. Without that, keep-best and the headline's alpha are decided
on the validation species of the world, or on the evaluation split of records.
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
from grain_jax.evaluation.details import ResultDetails, describe_set
from grain_jax.evaluation.encode import (
    Encoder,
    ImageFeatures,
    Selection,
    errors_about,
    evenly_spaced,
)
from grain_jax.evaluation.folders import load_zero_shot
from grain_jax.evaluation.grounding import (
    box_scores,
    chosen_queries,
    cxcywh_to_xyxy,
    phrase_hits,
)
from grain_jax.evaluation.retrieval import retrieval, unique_texts
from grain_jax.evaluation.set_names import zero_shot_folders
from grain_jax.evaluation.zero_shot import WAYS, LabelledSelection, evaluate_zero_shot, subset

BASELINE_IMAGES = 500  # training images that the constant boxes are fitted to
MAX_DRAWN_BYTES = 1 << 30  # of drawn pictures that are kept; more of them are drawn when needed
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
    details: ResultDetails | None = None,
) -> dict[str, float]:
    """Flat metrics, shares in [0, 1], such as "unseen/description/alpha0" or
    "dev/retrieval/mean_R@1".

    `final=False` (at intervals): at most `evaluation.max_images` of the held-out data, and of each
    folder of `evaluation.zero_shot_during_training`. `final=True`: everything, with intervals,
    baselines and the folders of `evaluation.zero_shot`. `details` records what the metrics were
    measured on, and every answer. Every process of a multi-host run must call it. Raises
    ValueError, with the name of the data and of the image, where one cannot be decoded or the
    model's embeddings are not finite.
    """
    match config.data.source:
        case "world":
            results = _world(encoder, config, final=final, details=details)
        case "records":
            results = _records(encoder, config, final=final, details=details)
        case unknown:
            raise ValueError(f"Unknown data.source {unknown!r}; choose 'world' or 'records'.")
    for name, folder in zero_shot_folders(config, final=final).items():
        if final:
            dataset = load_zero_shot(folder, name=name, note=note)
        else:
            dataset = _interval_folder(folder, name, config.evaluation.max_images)
        results |= score_zero_shot(encoder, dataset, config, final=final, details=details)
    return results


def check_inputs(config: TrainConfig, *, note: Callable[[str], None] = lambda text: None) -> None:
    """Raises ValueError at the start of a run for data that its end would fail to find.

    `note` is called with what a reader of the zero-shot figures should know.
    """
    if config.data.eval_split or config.data.source == "world":
        split = config.data.eval_split if config.data.source == "records" else "validation"
        source = open_source(config.data, split, image_size=config.model.image_size)
        if not len(source):
            raise ValueError(
                f"data.eval_split = {split!r} holds no image to evaluate on; name another split, "
                'or none: --config.data.eval_split="".'
            )
    for name, folder in zero_shot_folders(config, final=True).items():
        load_zero_shot(folder, name=name, note=note)


def best_metric_name(config: TrainConfig) -> str:
    """The metric of `evaluate(final=False)` that keep-best maximises; "" when nothing is held out.

    World: validation species by description, by regions as far as the model has them. Records: mean
    of R@1 both ways.
    """
    if config.evaluation.best_metric:
        return config.evaluation.best_metric
    if config.data.source == "world":
        regions = config.model.kind == "grain" and config.loss.region_weight > 0
        alpha = min(config.evaluation.alphas) if regions else 1.0
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
    features: ImageFeatures,
    truth: Annotations,
    encoder: Encoder,
    prefix: str,
    *,
    details: ResultDetails | None = None,
) -> dict[str, float]:
    """Box and phrase metrics of a model with trained boxes; {} without, or without true boxes.

    A phrase is found by region embeddings, so they have to be trained too.
    """
    if features.boxes is None or not truth.phrases:
        return {}
    predicted = cxcywh_to_xyxy(features.boxes)
    boxes = box_scores(predicted, truth.boxes)
    results = {
        f"{prefix}/box_iou": boxes.iou,
        f"{prefix}/box_recall": boxes.recall,
        f"{prefix}/box_recall_ceiling": boxes.ceiling,
    }
    if features.regions is None:
        return results
    embed = encoder.texts([phrase.text for phrase in truth.phrases], kind="description")
    chosen = chosen_queries(features.regions, embed, truth.phrases)
    images = np.array([phrase.image for phrase in truth.phrases], int)
    hits = phrase_hits(predicted[images, chosen], truth.phrases)
    if details is not None and details.predictions is not None:
        details.predictions.grounding(
            prefix,
            truth.phrases,
            ids=truth.ids,
            chosen=chosen,
            chosen_xyxy=predicted[images, chosen],
            cosines=(features.regions[images, chosen] * embed).sum(axis=1),
        )
    return results | {f"{prefix}/phrase_accuracy": float(hits.mean())}


def evaluate_retrieval(
    features: ImageFeatures,
    truth: Annotations,
    encoder: Encoder,
    prefix: str,
    *,
    details: ResultDetails | None = None,
) -> dict[str, float]:
    """Recall both ways over the images that have captions; {} when fewer than two have any."""
    captioned = [i for i, texts in enumerate(truth.captions) if texts]
    if len(captioned) < 2:
        return {}
    texts, text_rows, image_rows = unique_texts([truth.captions[i] for i in captioned])
    embed = encoder.texts(texts, kind="caption")
    image, pairs = features.image[captioned], {"text_rows": text_rows, "image_rows": image_rows}
    recalls = retrieval(image, embed, **pairs)
    if details is not None and details.predictions is not None:
        ids = [truth.ids[i] for i in captioned]
        details.predictions.retrieval(prefix, image, embed, ids=ids, texts=texts, **pairs)
    recalls |= {"images": float(len(captioned)), "texts": float(len(texts))}
    return {f"{prefix}/retrieval/{name}": value for name, value in recalls.items()}


def _world(
    encoder: Encoder, config: TrainConfig, *, final: bool, details: ResultDetails | None
) -> dict[str, float]:
    from grain_jax.data.world import part_of_description

    size = encoder.preprocessing.image_size
    baseline = None
    if final and config.model.kind == "grain" and encoder.learned.boxes:
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
        results |= score_zero_shot(
            encoder,
            dataset,
            config,
            final=final,
            details=details,
            features=features,
            by=WAYS_OF_SPLIT[split],
        )
        truth = read_annotations(dataset.source, encoder.preprocessing, caption_source="synthetic")
        results |= evaluate_grounding(features, truth, encoder, split, details=details)
        results |= evaluate_retrieval(features, truth, encoder, split, details=details)
        if baseline is not None and truth.phrases:
            results |= score_constant_boxes(baseline, truth, split)
    return results | (headline(results, config.evaluation.alphas) if final else {})


def _drawn_set(world: WorldConfig, split: str, limit: int | None, image_size: int) -> ZeroShotSet:
    """A set of the world, at most `limit` of its images, each drawn once if memory allows."""
    from grain_jax.data.world import WorldSource, world_zero_shot_sets

    dataset, whole = (
        world_zero_shot_sets(world, image_size)[split],
        WorldSource(world, split, image_size),
    )
    source = whole if limit is None else evenly_spaced(whole, limit)
    if len(source) * 3 * image_size**2 <= MAX_DRAWN_BYTES:
        drawn = InMemory(tuple(source[i] for i in range(len(source))))
        return dataclasses.replace(dataset, source=drawn)
    indices = source.indices if isinstance(source, Selection) else range(len(source))
    labels = tuple(whole.species_of(i).name for i in indices)
    return dataclasses.replace(dataset, source=LabelledSelection(whole, indices, labels))


@functools.lru_cache(maxsize=1)
def _interval_set(world: str, split: str, limit: int, image_size: int) -> ZeroShotSet:
    """Kept, so that an interval of training draws nothing again; `world` is JSON, which hashes."""
    return _drawn_set(WorldConfig(**json.loads(world)), split, limit, image_size)


@functools.lru_cache(maxsize=32)
def _interval_folder(folder: str, name: str, limit: int) -> ZeroShotSet:
    """Kept, so that an interval of training lists no files again. Its images are not: they are
    read and decoded each time, as those of the training data are.
    """
    return subset(load_zero_shot(folder, name=name, note=lambda text: None), limit)


def _records(
    encoder: Encoder, config: TrainConfig, *, final: bool, details: ResultDetails | None
) -> dict[str, float]:
    split, size = config.data.eval_split, encoder.preprocessing.image_size
    if not split:
        return {}
    source = open_source(config.data, split, image_size=size)
    if not final:
        return evaluate_records(encoder, evenly_spaced(source, config.evaluation.max_images), split)
    training = open_source(config.data, config.data.train_split, image_size=size)
    return evaluate_records(encoder, source, split, training=training, details=details)


def evaluate_records(
    encoder: Encoder,
    source: Source,
    prefix: str,
    *,
    tasks: Sequence[str] = ("retrieval", "grounding"),
    training: Source | None = None,
    details: ResultDetails | None = None,
) -> dict[str, float]:
    """Retrieval and grounding under "<prefix>/...", of what the records and the model have; with
    `training` also what constant boxes, fitted to its regions, would score.
    """
    with errors_about(f"Split {prefix!r}"):
        truth = read_annotations(source, encoder.preprocessing, caption_source="original")
        features = encoder.images(source)
    if details is not None:
        details.add_split(prefix, source)
    results: dict[str, float] = {}
    if "retrieval" in tasks:
        results |= evaluate_retrieval(features, truth, encoder, prefix, details=details)
    if "grounding" in tasks:
        results |= evaluate_grounding(features, truth, encoder, prefix, details=details)
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


def score_zero_shot(
    encoder: Encoder,
    dataset: ZeroShotSet,
    config: TrainConfig,
    *,
    final: bool,
    details: ResultDetails | None = None,
    features: ImageFeatures | None = None,
    by: Sequence[str] = WAYS,
) -> dict[str, float]:
    """`evaluate_zero_shot` as the settings of the run have it."""
    on_scores = None
    if details is not None:
        details.zero_shot_sets[dataset.name] = describe_set(dataset)
        if details.predictions is not None:
            on_scores = details.predictions.of_set(dataset)
    return evaluate_zero_shot(
        encoder,
        dataset,
        alphas=config.evaluation.alphas,
        by=by,
        name_ensemble=config.evaluation.name_ensemble,
        region_score=config.evaluation.region_score,
        features=features,
        details=final,
        on_scores=on_scores,
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
