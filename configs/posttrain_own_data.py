r"""GRAIN on top of OpenAI's CLIP ViT-B/16 for your own images and classes, on one GPU.

    python -m grain_jax.train --config=configs/posttrain_own_data.py \
        --data.data_dir=DIR --workdir=RUN

docs/own-data.md goes from photographs and class descriptions to DIR, and from RUN to an export. The
weights come from the Hugging Face hub (`pretrained`, 600 MB); --pretrained=NAME_OR_FOLDER takes any
other CLIP or SigLIP. The region decoder is trained whole, of each tower only the last layers, at a
tenth of its rate, and the rest is frozen: no gradient, no optimizer state. DIR needs the splits
`train` and `validation`.
Not yet run on photographs. Memory as compiled for one TPU v5e of 16 GB (docs/experiments.md,
section 6): 4.5 GiB, 2.8 GiB at the peak for the variant "decoder"; 72 GiB with everything trained
and nothing recomputed.
Variants: "" (the last 2 layers of each tower), "decoder" (towers frozen whole: texts keep CLIP's
embeddings).
"""

from grain_jax.config import DataConfig, EvaluationConfig, OptimConfig, TrainConfig


def get_config(variant: str = "") -> TrainConfig:
    config = TrainConfig(
        name="posttrain_own_data",
        pretrained="openai/clip-vit-base-patch16",
        batch_size=256,
        epochs=20.0,
        data=DataConfig(dataset="tfds", eval_split="validation", num_workers=4),
        optim=OptimConfig(
            learning_rate=3e-4,
            clip_grad_norm=1.0,
            lr_multipliers=("vision/*=0.1", "text/*=0.1"),
            trained_vision_layers=2,
            trained_text_layers=2,
        ),
        evaluation=EvaluationConfig(eval_interval_steps=200),
    )
    config.loss.image_description_weight = 0.5
    config.model.region_logit_scale = "own"
    config.model.remat = "full"  # of few layers, so that it costs little time
    match variant:
        case "":
            return config
        case "decoder":
            config.optim.trained_vision_layers = config.optim.trained_text_layers = 0
            config.optim.lr_multipliers = ()
            return config
    raise ValueError(f"Unknown variant {variant!r}; choose '' or 'decoder'.")
