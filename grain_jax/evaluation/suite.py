"""What a run is measured by: during training on held-out data, and at its end on the test sets.

No test set is looked at before the end unless the user names it in
`evaluation.zero_shot_during_training`. Without that, keep_best and the headline's alpha are decided
on the validation species of synthetic_birds, or on the evaluation split of tfds.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grain_jax.boxes import cxcywh_to_xyxy
from grain_jax.config import TrainConfig
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.classification.set_names import zero_shot_folders
from grain_jax.data.image_variants import RANDOM_CROPS, VARIANTS, RandomCrops, VariantKind
from grain_jax.data.records import EvaluationSet, Source, ZeroShotSet, evenly_spaced
from grain_jax.data.source import data_source
from grain_jax.evaluation.annotations import Annotations, read_annotations
from grain_jax.evaluation.baselines import (
    ConstantBoxes,
    fit_constant_boxes,
    score_constant_boxes,
)
from grain_jax.evaluation.costs import Cost
from grain_jax.evaluation.details import ResultDetails, describe_set
from grain_jax.evaluation.grounding import box_scores, chosen_queries, phrase_hits
from grain_jax.evaluation.grounding_protocol import make_protocol
from grain_jax.evaluation.left_out import note_left_out
from grain_jax.evaluation.mean_results import mean_result
from grain_jax.evaluation.predictions import DrawnAnswers, note_draws
from grain_jax.evaluation.retrieval import retrieval, unique_texts
from grain_jax.evaluation.variants import predicted_boxes
from grain_jax.evaluation.zero_shot import evaluate_zero_shot, subset
from grain_jax.inference.encoder import Encoder, ImageFeatures, errors_about
from grain_jax.results import Result
from grain_jax.zero_shot.method import CaptionBank, Support
from grain_jax.zero_shot.methods import DEFAULT_METHODS, crop_methods

BASELINE_IMAGES = 500  # training images that the constant boxes are fitted to
TASKS = ("retrieval", "grounding")
PHRASES = "each different description of an image, boxes as the model sees them"


def evaluate(
    encoder: Encoder,
    config: TrainConfig,
    *,
    final: bool,
    note: Callable[[str], None] = print,
    details: ResultDetails | None = None,
    methods: Sequence[str] | None = None,
    kinds: Mapping[str, VariantKind] = VARIANTS,
) -> list[Result]:
    """The results of a run: zero-shot classification, retrieval and grounding.

    `final=False` (at intervals): at most `evaluation.max_images` of the held-out data, and of each
    folder of `evaluation.zero_shot_during_training`. `final=True`: everything, with intervals,
    baselines and the folders of `evaluation.zero_shot`. `details` records what the metrics were
    measured on, and every answer. `methods` of zero-shot classification: None, those that each set
    lists; `kinds`: the variants of images. Every process of a multi-host run must call it. Raises
    ValueError, with the name of the data and of the image, where one cannot be decoded or the
    model's embeddings are not finite.
    """
    image_size, limit = encoder.preprocessing.image_size, config.evaluation.max_images
    data = data_source(config.data, image_size=image_size)
    training = None
    if final:
        training = TrainingBoxes(data.training_records, encoder, groups=data.box_groups)
    results: list[Result] = []
    check_methods_of = functools.partial(
        note_left_out,
        methods or (),
        has_regions=config.model.type == "grain" and encoder.learned.regions,
        num_boxes=predicted_boxes(config, encoder.learned),
        note=note,
        left_out={} if details is None else details.left_out,
        kinds=kinds,
        draws=config.evaluation.text_draws,
    )
    for held_out in data.evaluation_sets(limit=None if final else limit):
        if methods and held_out.zero_shot is not None:
            check_methods_of(held_out.zero_shot)
        results += evaluate_set(
            encoder,
            held_out,
            config,
            final=final,
            training=training,
            details=details,
            methods=methods,
            kinds=kinds,
        )
    if final:
        results += data.summary(results, config.evaluation.alphas)
    for name, folder in named_folders(config, final=final).items():
        if final:
            dataset = load_zero_shot(folder, name=name, note=note)
        else:
            dataset = interval_folder(folder, name, limit)
        if methods:
            check_methods_of(dataset)
        results += score_zero_shot(
            encoder,
            dataset,
            config,
            final=final,
            details=details,
            methods=methods or DEFAULT_METHODS,
            kinds=kinds,
            note=note if final else None,
        )
    return results


def named_folders(config: TrainConfig, *, final: bool) -> dict[str, str]:
    """`zero_shot_folders` of a run, told apart from the evaluation sets of its data."""
    data = data_source(config.data, image_size=config.model.image_size)
    return zero_shot_folders(config.evaluation, final=final, taken=data.reserved_names)


def check_inputs(config: TrainConfig, *, note: Callable[[str], None] = lambda text: None) -> None:
    """Raises ValueError at the start of a run for data that its end would fail to find.

    `note` is called with what a reader of the zero-shot metrics should know.
    """
    data = data_source(config.data, image_size=config.model.image_size)
    if (split := data.held_out_split) and not len(data.records(split)):
        raise ValueError(
            f"data.eval_split = {split!r} holds no image to evaluate on; name another split, "
            'or none: --data.eval_split="".'
        )
    for name, folder in named_folders(config, final=True).items():
        load_zero_shot(folder, name=name, note=note)


def best_metric_name(config: TrainConfig) -> str:
    """The metric of `evaluate(final=False)` that keep_best maximises; "" when nothing is held out.

    That of the settings, else the data set's own.
    """
    data = data_source(config.data, image_size=config.model.image_size)
    return config.evaluation.best_metric or data.default_metric(config)


def evaluate_grounding(
    features: ImageFeatures,
    truth: Annotations,
    encoder: Encoder,
    dataset: str,
    *,
    intervals: bool = True,
    details: ResultDetails | None = None,
) -> list[Result]:
    """Box and phrase metrics of a model with trained boxes; [] without, or without true boxes.

    A phrase is found by region embeddings, so they have to be trained too.
    """
    if features.boxes is None or not truth.phrases:
        return []
    predicted = cxcywh_to_xyxy(features.boxes)
    boxes = box_scores(predicted, truth.boxes)
    bound = "box_recall_upper_bound"
    results = [
        *boxes.results(dataset, "model", intervals=intervals),
        Result(dataset, "model", None, bound, boxes.upper_bound, n=boxes.count),
    ]
    if features.regions is None:
        return results
    embed = encoder.texts([phrase.text for phrase in truth.phrases], kind="description")
    chosen = chosen_queries(features.regions, embed, truth.phrases)
    images = np.array([phrase.image for phrase in truth.phrases], int)
    hits = phrase_hits(predicted[images, chosen], truth.phrases)
    if details is not None and details.predictions is not None:
        details.predictions.grounding(
            dataset,
            truth.phrases,
            ids=truth.ids,
            chosen=chosen,
            chosen_xyxy=predicted[images, chosen],
            cosines=(features.regions[images, chosen] * embed).sum(axis=1),
            protocol=make_protocol(
                boxes="predicted",
                truth="any",
                feature="region",
                preprocessing=encoder.preprocessing,
                prompt="{}",
                queries=PHRASES,
            ),
        )
    accuracy = mean_result(dataset, "model", "phrase_accuracy", hits, images, interval=intervals)
    return [*results, accuracy]


def evaluate_retrieval(
    features: ImageFeatures,
    truth: Annotations,
    encoder: Encoder,
    dataset: str,
    *,
    intervals: bool = True,
    details: ResultDetails | None = None,
) -> list[Result]:
    """Recall both ways over the images that have captions; [] when fewer than two have any."""
    captioned = [i for i, texts in enumerate(truth.captions) if texts]
    if len(captioned) < 2:
        return []
    texts, text_rows, image_rows = unique_texts([truth.captions[i] for i in captioned])
    embed = encoder.texts(texts, kind="caption")
    image, pairs = features.image[captioned], {"text_rows": text_rows, "image_rows": image_rows}
    if details is not None and details.predictions is not None:
        ids = [truth.ids[i] for i in captioned]
        details.predictions.retrieval(dataset, image, embed, ids=ids, texts=texts, **pairs)
    return retrieval(image, embed, **pairs, dataset=dataset, intervals=intervals)


@functools.lru_cache(maxsize=32)
def interval_folder(folder: str, name: str, limit: int) -> ZeroShotSet:
    """Kept, so that an interval of training lists no files again. Its images are not: they are
    read and decoded each time, as those of the training data are.
    """
    return subset(load_zero_shot(folder, name=name, note=lambda text: None), limit)


def evaluate_set(
    encoder: Encoder,
    held_out: EvaluationSet,
    config: TrainConfig,
    *,
    final: bool,
    tasks: Sequence[str] = TASKS,
    training: "TrainingBoxes | None" = None,
    details: ResultDetails | None = None,
    methods: Sequence[str] | None = None,
    kinds: Mapping[str, VariantKind] = VARIANTS,
) -> list[Result]:
    """Zero-shot classification, retrieval and grounding, of what the set and the model have.

    With `training` also what constant boxes, fitted to the regions there, would score.
    """
    name = held_out.name
    with errors_about(held_out.title):
        truth = read_annotations(
            held_out.source, encoder.preprocessing, caption_source=held_out.preferred_captions
        )
        features = encoder.images(held_out.source)
    results: list[Result] = []
    if held_out.zero_shot is not None:
        results += score_zero_shot(
            encoder,
            held_out.zero_shot,
            config,
            final=final,
            details=details,
            features=features,
            methods=methods or held_out.methods,
            kinds=kinds,
        )
    elif details is not None:
        details.add_split(name, held_out.source)
    if "retrieval" in tasks:
        results += evaluate_retrieval(
            features, truth, encoder, name, intervals=final, details=details
        )
    if "grounding" in tasks:
        grounding = evaluate_grounding(
            features, truth, encoder, name, intervals=final, details=details
        )
        results += grounding
        if training is not None and grounding and features.boxes is not None:
            baseline = training.constant_boxes(features.boxes.shape[1])
            results += [] if baseline is None else score_constant_boxes(baseline, truth, name)
    return results


class TrainingBoxes:
    """The regions of some training images, read once they are needed.

    `groups`: what a description's box is grouped by; None: all boxes as one group.
    """

    def __init__(
        self,
        open_source: Callable[[], Source],
        encoder: Encoder,
        *,
        groups: Callable[[str], str | None] | None = None,
    ):
        self._open, self._encoder, self._groups = open_source, encoder, groups
        self._truth: Annotations | None = None
        self._fitted: dict[int, ConstantBoxes] = {}

    def constant_boxes(self, num_boxes: int) -> ConstantBoxes | None:
        """None where the training data has no boxes."""
        if self._truth is None:
            sample = evenly_spaced(self._open(), BASELINE_IMAGES)
            with errors_about("Training images"):
                self._truth = read_annotations(
                    sample, self._encoder.preprocessing, caption_source="original"
                )
        if not self._truth.phrases:
            return None
        if num_boxes not in self._fitted:
            self._fitted[num_boxes] = fit_constant_boxes(
                self._truth, num_boxes, part_of=self._groups
            )
        return self._fitted[num_boxes]


def score_zero_shot(
    encoder: Encoder,
    dataset: ZeroShotSet,
    config: TrainConfig,
    *,
    final: bool,
    details: ResultDetails | None = None,
    features: ImageFeatures | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    bank: CaptionBank | None = None,
    support: Support | None = None,
    kinds: Mapping[str, VariantKind] = VARIANTS,
    note: Callable[[str], None] | None = None,
) -> list[Result]:
    """`evaluate_zero_shot` as the settings of the run have it."""
    on_scores = on_texts = None
    draws: DrawnAnswers = {}
    costs: dict[str, Cost] = {}
    if details is not None and details.predictions is not None:
        on_scores = details.predictions.of_set(
            dataset, logit_scale=encoder.logit_scale, draws=draws
        )
        on_texts = details.predictions.look_up
    results = evaluate_zero_shot(
        encoder,
        dataset,
        alphas=config.evaluation.alphas,
        methods=methods,
        prompt_ensembling=config.evaluation.prompt_ensembling,
        region_aggregation=config.evaluation.region_aggregation,
        text_draws=config.evaluation.text_draws,
        features=features,
        details=final,
        on_scores=on_scores,
        on_draws=None if on_scores is None else note_draws(draws),
        on_texts=on_texts,
        on_costs=None if details is None else costs.update,
        bank=bank,
        support=support,
        kinds=kinds,
        note=note,
    )
    if details is not None:  # behind the errors that name an image which cannot be read
        details.zero_shot_sets[dataset.name] = describe_set(dataset) | _drawn_crops(methods, kinds)
        details.costs[dataset.name] = costs
    return results


def _drawn_crops(methods: Sequence[str], kinds: Mapping[str, VariantKind]) -> dict[str, Any]:
    """The numbers of random crops, where a method looks at some."""
    crops = kinds[RANDOM_CROPS]
    if not isinstance(crops, RandomCrops) or not crop_methods(methods):
        return {}
    return {RANDOM_CROPS: dataclasses.asdict(crops)}
