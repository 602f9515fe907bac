"""Which metric decides what keep_best keeps, and whether there can be one of that name.

The names that can exist are not listed anywhere: they are those that `suite.evaluate` returns for
an encoder that looks at no image. So a new metric, or another rule for when one is measured, needs
no change here.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from grain_jax.config import TrainConfig
from grain_jax.data.records import Source
from grain_jax.data.transforms import Preprocessing
from grain_jax.evaluation.suite import best_metric_name, evaluate, named_folders
from grain_jax.inference.encoder import Encoder, ImageFeatures
from grain_jax.models.learned import EVERYTHING, Learned

# Last parts of the names of what only the data decides: no model is better by it.
OF_THE_DATA = ("random", "random_R@1", "images", "texts", "box_recall_upper_bound")


class BlindEncoder(Encoder):
    """Stands for the model of a run where only the names of its metrics are wanted.

    It gives every image and text the same embedding, without decoding or encoding any, and what
    is not `learned` it leaves out, as the encoder of the run does.
    """

    def __init__(self, config: TrainConfig, *, learned: Learned = EVERYTHING):
        self.preprocessing = Preprocessing.from_config(config.data, config.model.image_size)
        self.truncated_texts, self.learned = 0, learned
        grain = config.model.type == "grain"
        self._num_queries = config.model.decoder.num_queries if grain else None

    @property
    def logit_scale(self) -> float:
        """Any will do: only names are wanted."""
        return 1.0

    def images(
        self, source: Source, *, on_batch: Callable[[int], None] | None = None
    ) -> ImageFeatures:
        """One number an embedding, empty boxes."""
        count, queries = len(source), self._num_queries
        image = np.ones((count, 1), np.float32)
        if queries is None:
            return ImageFeatures(image, None, None)
        regions = np.ones((count, queries, 1), np.float32) if self.learned.regions else None
        boxes = np.zeros((count, queries, 4), np.float32) if self.learned.boxes else None
        return ImageFeatures(image, regions, boxes)

    def texts(self, texts: Sequence[str], *, kind: str) -> Float[np.ndarray, "T E"]:
        """One number an embedding."""
        return np.ones((len(texts), 1), np.float32)

    def with_params(self, params: Any, *, learned: Learned | None = None) -> "BlindEncoder":
        """Itself: it has no parameters."""
        return self


def measured_during_training(config: TrainConfig, *, learned: Learned = EVERYTHING) -> list[str]:
    """Names of the metrics that an evaluation at an interval returns, in their order.

    Reads the texts and boxes that such an evaluation reads, and no pixel of files. Raises
    ValueError for data that cannot be evaluated on.
    """
    encoder = BlindEncoder(config, learned=learned)
    return [result.key for result in evaluate(encoder, config, final=False, note=lambda _: None)]


def check_best_metric(config: TrainConfig, *, learned: Learned = EVERYTHING) -> list[str]:
    """What the user should know about keep_best, as sentences without a full stop.

    Raises ValueError where the metric of keep_best is not measured during training, with the
    nearest one that is.
    """
    if not (config.evaluation.eval_interval_steps and config.checkpoint.keep_best):
        return []
    name, given = best_metric_name(config), config.evaluation.best_metric
    measured = measured_during_training(config, learned=learned)
    choices = [known for known in measured if known.rpartition("/")[2] not in OF_THE_DATA]
    listed = ", ".join(choices)
    if name in choices:
        looked_at = named_folders(config, final=False)
        if chosen_on := [known for known in looked_at if name.startswith(f"{known}/")]:
            return [
                f"keep_best goes by {name}, so metrics of {chosen_on[0]!r} flatter the checkpoint "
                "that it keeps; compare models on data that chose none of them"
            ]
        return []
    if not name:
        unused = "nothing decides which checkpoint is the best; evaluation.best_metric may, as one"
        return [f"{unused} of {listed}"] if choices else []
    if not given:
        raise ValueError(
            f"keep_best goes by {name!r} unless set otherwise, and this data has no such metric. "
            + (
                f"Set evaluation.best_metric to one of {listed}, or checkpoint.keep_best=False."
                if choices
                else "Set checkpoint.keep_best=False."
            )
        )
    raise ValueError(
        f"evaluation.best_metric = {given!r} {_why_not(config, given, measured)}. "
        f"{_nearest(given, choices)}Measured during training: {listed or 'nothing'}."
    )


def _why_not(config: TrainConfig, given: str, measured: Sequence[str]) -> str:
    if given in measured:
        return "is decided by the data, not by the model"
    during, at_end = (named_folders(config, final=final) for final in (False, True))
    for name, folder in at_end.items():
        if name not in during and given.startswith(f"{name}/"):
            return (
                f"is of a set that is measured at the end only: name {folder!r} in "
                "evaluation.zero_shot_during_training too"
            )
    name, slash, _ = given.partition("/")
    if slash and name not in {known.partition("/")[0] for known in measured}:
        return (
            f"is of a set {name!r} that this run does not have: name its folder in "
            "evaluation.zero_shot_during_training"
        )
    return "is not measured during training"


def _nearest(given: str, choices: Sequence[str]) -> str:
    """By spelling, else one that ends alike: of another set."""
    near = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    last = given.rpartition("/")[2]
    near += [known for known in choices if known.rpartition("/")[2] == last]
    return f"Did you mean {near[0]!r}? " if near else ""
