"""Every setting is read, or its rule says under which other settings it is not."""

import fnmatch

import jax
import pytest
from settings import changed, records_config
from tiny_run import TinyRun, bundle_of, tiny_config

from grain_jax.config import TrainConfig
from grain_jax.config.bounds import leaves
from grain_jax.config.cli import config_from_json, config_to_json
from grain_jax.config.unread_settings import UNREAD
from grain_jax.config.validation import memory_notes, problems, unread_notes
from grain_jax.data.synthetic_birds import demo
from grain_jax.loading.load import read_model
from grain_jax.loading.run import write_run
from grain_jax.models.image_text import build_model
from grain_jax.parallel.sharding import cpu_devices_notes
from grain_jax.trainer.inputs import late_notes

CLIP = {"model__type": "clip"}
SIGMOID = {"loss__image_caption": "sigmoid"}
HELD_OUT_BY_NONE = {"data__data_dir": "", "data__eval_split": ""}
WORLD = {"data__dataset": "synthetic_birds", "data__data_dir": ""}
# One case for each setting that a rule names: what makes it unread, and a value for it.
REFUSED = [
    (CLIP, "loss.box_weight", 2.0),
    (CLIP, "loss.region_weight", 2.0),
    (CLIP, "loss.match_l1_cost", 1.0),
    (CLIP, "loss.match_giou_cost", 1.0),
    (CLIP, "loss.mask_duplicate_descriptions", False),
    ({"loss__region_weight": 0.0}, "loss.mask_duplicate_descriptions", False),
    (CLIP, "loss.variant", "official"),
    ({}, "model.init_sigmoid_scale", 5.0),
    ({}, "model.init_logit_bias", -5.0),
    (WORLD, "data.data_dir", "DIR"),
    (WORLD, "data.mixture", ("DIR=1",)),
    ({**HELD_OUT_BY_NONE, "data__mixture": ("a=1",)}, "data.data_dir", "DIR"),
    (WORLD, "data.eval_split", ""),
    ({}, "data.synthetic_birds.difficulty", "hard"),
    ({}, "data.synthetic_birds.num_train_images", 1_000),
    ({}, "data.synthetic_birds.num_eval_images", 100),
    ({}, "data.synthetic_birds.seed", 1),
    ({"steps": 10}, "epochs", 5.0),
    ({"optim__warmup_steps": 10}, "optim.warmup_epochs", 2.0),
    ({"optim__warmup_epochs": 0.0}, "optim.warmup_start", 1e-5),
    ({}, "logging.wandb_project", "mine"),
    ({"logging__hang_timeout_seconds": 0.0}, "logging.hang_action", "exit"),
    # Of `config_rules`, as their values can be wrong too.
    (CLIP, "loss.auxiliary_box_weight", 1.0),
    (CLIP, "model.region_logit_scale", "own"),
    (CLIP, "model.description_capacity_factor", 0.5),
    (CLIP, "evaluation.alphas", (0.5,)),
    (CLIP, "evaluation.region_aggregation", "max_over_descriptions"),
    ({}, "data.crop_min_area", 0.3),
    ({}, "evaluation.best_metric", "validation/retrieval/mean_R@1"),
    ({}, "evaluation.zero_shot_during_training", ("pets",)),
]
INIT = {"pretrained": "RUN"}
NOTED = [
    ({"model__dtype": "float32"}, "model.gradient_dtype", "float32"),
    (CLIP, "model.decoder.depth", 3),
    (CLIP, "model.decoder.dropout", 0.5),
    (INIT, "model.vision.position_init", "sincos"),
    (INIT, "model.vision.initializer", "xavier"),
    (INIT, "model.text.token_init_std", 0.5),
    (INIT, "model.init_logit_scale", 5.0),
    (CLIP | SIGMOID, "model.init_logit_scale", 5.0),
    (CLIP, "data.max_regions", 3),
    (CLIP, "data.region_nms_iou", 0.5),
    (CLIP, "data.unique_descriptions", True),
    (CLIP, "data.description_length", 16),
    ({"optim__weight_decay": 0.0}, "optim.weight_decay_mask", "official"),
    ({}, "evaluation.max_images", 10),
    (CLIP, "evaluation.num_visualized", 3),
    ({"data__eval_split": ""}, "evaluation.num_visualized", 3),
]
# Noted with the number of steps, or the devices, that are known only later.
LATER = {"max_steps_this_run", "logging.profile_step", "mesh.cpu_devices"}
ALWAYS_READ = {
    *("name", "seed", "batch_size", "steps", "pretrained", "model.type", "model.image_size"),
    *("model.embed_dim", "model.dtype", "model.scan_layers", "model.remat", "model.attention"),
    "model.text_tokens_per_image",
    *("model.max_logit_scale", "model.vision.*", "model.text.*", "data.dataset", "data.resize"),
    *("loss.contrastive_weight", "loss.image_description_weight", "loss.mask_duplicate_captions"),
    *("loss.image_caption", "loss.logits*"),
    *("data.train_split", "data.flip_probability", "data.mean", "data.std", "data.tokenizer"),
    "data.interpolation",  # of evaluation and export also where training resizes nothing
    *("data.caption_length", "data.num_*", "data.prefetch_batches", "data.cache"),
    "data.allow_no_regions",  # a permission: it has nothing to do where it is not needed
    # Whether the records have both kinds of captions, or any region, the data says.
    *("data.synthetic_caption_probability", "data.region_caption_probability"),
    *("optim.learning_rate", "optim.warmup_steps", "optim.final_learning_rate", "optim.beta?"),
    *("optim.eps", "optim.weight_decay", "optim.clip_grad_norm", "optim.lr_multipliers"),
    "optim.moments_dtype",
    "optim.trained_*_layers",
    *(
        "optim.grad_cache_chunks",
        "optim.ema_decay",
        "optim.max_consecutive_nonfinite",
        "mesh.data",
        "mesh.fsdp",
    ),
    *(
        "mesh.tensor",
        "mesh.preset",
        "checkpoint.*",
        "evaluation.eval_interval_steps",
        "evaluation.batch_size",
    ),
    *("evaluation.prompt_ensembling", "evaluation.text_draws", "evaluation.zero_shot"),
    "logging.log_interval_steps",
    *("logging.plan", "logging.tensorboard", "logging.wandb", "logging.compilation_cache"),
    "logging.hang_timeout_seconds",
}


def set_path(config: TrainConfig, path: str, value: object) -> TrainConfig:
    return changed(config, **{path.replace(".", "__"): value})


def test_every_setting_has_been_thought_of():
    """A new setting is to be put into one of the tables above."""
    ruled = {path for _, path, _ in (*REFUSED, *NOTED)} | LATER
    ruled |= {pattern for rule in UNREAD for pattern in rule.settings}
    for path in leaves(TrainConfig()):
        known = [pattern for pattern in ruled | ALWAYS_READ if fnmatch.fnmatch(path, pattern)]
        assert known, path
    for rule in UNREAD:  # each has its case
        for pattern in rule.settings:
            cases = REFUSED if rule.refused else NOTED
            assert any(fnmatch.fnmatch(path, pattern) for _, path, _ in cases), pattern


@pytest.mark.parametrize(("because", "path", "value"), REFUSED)
def test_what_nothing_reads_is_refused(because, path, value):
    base = changed(records_config(), **because)
    assert problems(base) == []  # defaults never are
    (found,) = problems(set_path(base, path, value))
    assert found.startswith(path) or path in found


@pytest.mark.parametrize(("because", "path", "value"), NOTED)
def test_what_plainly_asks_for_nothing_is_told(because, path, value):
    base = changed(records_config(), **because)
    assert unread_notes(base) == []
    config = set_path(base, path, value)
    assert problems(config) == []
    (note,) = unread_notes(config)
    assert f"{path} = {value!r}" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 10, "epochs": 0.0},
        {"optim__warmup_steps": 5, "optim__warmup_epochs": 0.0},
        {"model__type": "clip", "loss__box_weight": 0.0, "loss__region_weight": 0.0},
        {"model__type": "clip", "loss__image_description_weight": 1.0, "data__max_regions": 3},
        {"pretrained": "RUN", "model__region_logit_scale": "own", "model__init_logit_scale": 5.0},
        {**SIGMOID, "model__region_logit_scale": "own", "model__init_logit_scale": 5.0},
        {**SIGMOID, "model__region_logit_scale": "own", "model__init_logit_bias": -5.0},
        # The weights may be those of a softmax, without a bias.
        {**CLIP, **SIGMOID, "pretrained": "RUN", "model__init_sigmoid_scale": 5.0},
        {
            **(CLIP | SIGMOID),
            "loss__image_description_weight": 1.0,
            "model__region_logit_scale": "own",
        },
    ],
)
def test_what_is_read_or_turned_off_is_neither_refused_nor_told(changes):
    config = changed(records_config(), **changes)
    assert problems(config) == []
    assert unread_notes(config) == []


def test_steps_and_devices_that_do_not_come_are_told():
    config = tiny_config()
    assert late_notes(config, start_step=0, steps=20) == []
    config.max_steps_this_run, config.logging.profile_step = 30, 25
    first, second = late_notes(config, start_step=0, steps=20)
    assert "max_steps_this_run = 30" in first
    assert "logging.profile_step = 25" in second
    config.max_steps_this_run, config.logging.profile_step = 10, 10
    assert late_notes(config, start_step=0, steps=20) == []
    assert len(late_notes(config, start_step=10, steps=20)) == 1  # its trace is there already
    assert cpu_devices_notes(config) == []
    config.mesh.cpu_devices = len(jax.local_devices())
    assert cpu_devices_notes(config) == []
    config.mesh.cpu_devices += 1
    assert "mesh.cpu_devices" in cpu_devices_notes(config)[0]


@pytest.mark.parametrize(("because", "path", "value"), [*REFUSED, *NOTED])
def test_a_stored_model_with_such_settings_is_still_built(because, path, value):
    config = set_path(changed(records_config(), **because), path, value)
    config = config_from_json(config_to_json(config))
    assert build_model(config.model).config == config.model


def test_a_stored_run_with_such_settings_is_still_read(tmp_path):
    """All of CLIP's at once, through the folder that evaluate, export and predict read."""
    config = tiny_config()
    for because, path, value in (*REFUSED, *NOTED):
        if because in (CLIP, {}):
            set_path(config, path, value)
    config.model.type, config.data.description_length = "clip", 4  # the tower has 8 positions
    assert problems(config)
    write_run(bundle_of(TinyRun(config)), tmp_path / "run")
    assert read_model(tmp_path / "run").config == config


def test_the_demos_are_not_refused():
    for variant in ("", "clip", "smoke"):
        assert problems(demo.get_config(variant)) == []


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_scanned_layers_of_which_nothing_is_recomputed_are_noted(scan_layers, remat):
    config = TrainConfig()
    config.model.scan_layers, config.model.remat = scan_layers, remat
    notes = memory_notes(config)
    assert len(notes) == (scan_layers and remat == "none")
    assert all("add --model.remat=full" in note for note in notes)
