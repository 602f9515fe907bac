"""The rules of a configuration: each refuses what it is about, says it once, and nothing else."""

from collections.abc import Callable

import pytest
from settings import changed, records_config

from grain_jax.config import DataConfig, TrainConfig
from grain_jax.config.validation import loader_problems, problems
from grain_jax.data.synthetic_birds import demo


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (demo.get_config, {"data__train_split": "validation"}, "held out"),
        (demo.get_config, {"data__train_split": "unseen"}, "held out"),
        (demo.get_config, {"data__num_workers": 2}, "num_workers=0"),
        (demo.get_config, {"data__crop_min_area": 0.005}, "expected at least 0.01"),
        (demo.get_config, {"data__crop_min_area": 0.3}, 'data.resize="crop"'),
        (demo.get_config, {"evaluation__alphas": (0.5, 2.0)}, "from 0 to 1"),
        (demo.get_config, {"evaluation__alphas": ()}, "one or more"),
        (demo.get_config, {"evaluation__alphas": (1.0, float("nan"))}, "expected a finite number"),
        (demo.get_config, {"data__std": (0.2, 0.0, 0.2)}, "expected more than 0"),
        (
            demo.get_config,
            {"loss__auxiliary_box_weight": 1.0, "model__decoder__depth": 1},
            "earlier decoder layers",
        ),
        (demo.get_config, {"evaluation__best_metric": "unseen/name"}, "measured on a test set"),
        (
            records_config,
            {"evaluation__zero_shot_during_training": ("birds",)},
            "set it to the steps between evaluations",
        ),
        (
            demo.get_config,
            {
                "model__type": "clip",
                "model__region_logit_scale": "shared",
                "evaluation__alphas": (0.5,),
            },
            "evaluation.alphas = (0.5,) is about regions",
        ),
        (
            demo.get_config,
            {
                "model__type": "clip",
                "model__region_logit_scale": "shared",
                "evaluation__region_aggregation": "max_over_descriptions",
            },
            "evaluation.region_aggregation = 'max_over_descriptions' is about regions",
        ),
        (
            records_config,
            {"model__type": "clip", "loss__auxiliary_box_weight": 1.0},
            "region decoder",
        ),
        (
            records_config,
            {"model__type": "clip", "model__region_logit_scale": "own"},
            'model.type = "clip"',
        ),
        (
            records_config,
            {"loss__region_weight": 0.0, "model__region_logit_scale": "own"},
            "loss.region_weight = 0",
        ),
        (
            records_config,
            {"loss__image_caption": "sigmoid"},
            'set model.region_logit_scale="own"',
        ),
        (
            records_config,
            {
                "model__type": "clip",
                "loss__image_caption": "sigmoid",
                "loss__image_description_weight": 1.0,
            },
            'set model.region_logit_scale="own"',
        ),
        (
            records_config,
            {
                "model__type": "clip",
                "loss__image_caption": "sigmoid",
                "model__region_logit_scale": "own",
            },
            'set model.region_logit_scale="shared"',
        ),
        (
            demo.get_config,
            {"loss__image_caption": "sigmoid", "model__init_sigmoid_scale": 200.0},
            "exceeds model.max_logit_scale = 100",
        ),
        (
            records_config,
            {"model__type": "clip", "model__description_capacity_factor": 0.6},
            "no loss reads any",
        ),
        (records_config, {"model__text_tokens_per_image": 17.0}, "18 to 237 tokens"),
        (records_config, {"model__text_tokens_per_image": 238.0}, "18 to 237 tokens"),
        (
            records_config,
            {"model__type": "clip", "model__text_tokens_per_image": 78.0},
            "3 to 77 tokens",
        ),
        (
            records_config,
            {
                "model__text_tokens_per_image": 40.0,
                "model__text__pooling": "last",
                "data__description_length": 77,
            },
            "looks at padding",
        ),
        (
            records_config,
            {
                "model__text_tokens_per_image": 40.0,
                "model__description_capacity_factor": 0.6,
            },
            "model.description_capacity_factor = 0.6 leaves out",
        ),
        (records_config, {"data__data_dir": ""}, "--data.data_dir=DIR"),
        (records_config, {"data__tokenizer": "synthetic_birds"}, "transformers tokenizer"),
        (records_config, {"data__eval_split": "train"}, "nothing would be held out"),
        (records_config, {"data__eval_split": "train[:1%]"}, "nothing would be held out"),
        (records_config, {"data__train_split": "train+validation"}, "nothing would be held out"),
        (records_config, {"data__train_split": "validation[:9%] + train"}, "nothing would be held"),
        (records_config, {"evaluation__best_metric": "dev/recall"}, "eval_interval_steps = 0"),
        (
            records_config,
            {
                "evaluation__best_metric": "dev/recall",
                "evaluation__eval_interval_steps": 10,
                "checkpoint__keep_best": False,
            },
            "keep_best keeps",
        ),
        (
            records_config,
            {"model__attention": "cudnn", "model__dtype": "float32"},
            "half precision",
        ),
        (
            records_config,
            {"model__attention": "pallas", "model__text__num_heads": 16, "model__text__width": 768},
            "model.text.width / num_heads = 48",
        ),
    ],
)
def test_what_cannot_work_is_refused_once(
    make: Callable[[], TrainConfig], changes: dict[str, object], message: str
) -> None:
    assert problems(make()) == []
    (found,) = problems(changed(make(), **changes))
    assert message in found


@pytest.mark.parametrize(
    "changes",
    [
        {"data__train_split": "train[:99%]", "data__eval_split": "train[99%:]"},
        {"data__eval_split": ""},
        {"data__eval_split": "train2"},
        {"evaluation__best_metric": "dev/recall", "evaluation__eval_interval_steps": 10},
        {"evaluation__best_metric": "seen_birds/name", "evaluation__eval_interval_steps": 10},
        {"evaluation__zero_shot_during_training": ("a",), "evaluation__eval_interval_steps": 10},
        {"model__attention": "cudnn"},
        {"model__attention": "pallas"},
        {"data__num_threads": 8, "data__prefetch_batches": 1},
        {"data__crop_min_area": 0.01, "data__resize": "crop"},
    ],
)
def test_what_works_is_not_refused(changes: dict[str, object]) -> None:
    assert problems(changed(records_config(), **changes)) == []


def test_a_loader_has_the_bounds_of_a_run() -> None:
    data = DataConfig(crop_min_area=0.005, num_threads=0)
    assert loader_problems(data) == problems(TrainConfig(data=data))
    assert len(loader_problems(data)) == 2
    assert loader_problems(DataConfig(dataset="tfds")) == []  # its records are open already
