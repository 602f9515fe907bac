"""Which parts of GRAIN's decoder a run has taught: what never learned answers with noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grain_jax.config import TrainConfig


@dataclass(frozen=True)
class Learned:
    """What of a model with a decoder can be used; a CLIP model has no such parts at all."""

    regions: bool = True  # region embeddings, against the descriptions of true regions
    boxes: bool = True

    def __or__(self, other: "Learned") -> "Learned":
        return Learned(self.regions or other.regions, self.boxes or other.boxes)

    def metadata(self) -> dict[str, bool]:
        """The keys of a checkpoint's metadata."""
        return {"regions_trained": self.regions, "boxes_trained": self.boxes}


EVERYTHING = Learned()
NOTHING = Learned(regions=False, boxes=False)


def learned_before(metadata: Mapping[str, Any]) -> Learned:
    """What stored metadata says; all of it where a checkpoint is older than these keys."""
    return Learned(
        regions=bool(metadata.get("regions_trained", True)),
        boxes=bool(metadata.get("boxes_trained", True)),
    )


def learns(config: TrainConfig, *, any_regions: bool) -> Learned:
    """What a run with these settings teaches, on data with or without any region."""
    taught = config.model.type == "grain" and any_regions
    return Learned(
        regions=taught and config.loss.region_weight > 0,
        boxes=taught and config.loss.box_weight > 0,
    )


def what_lacks(learned: Learned) -> str:
    """The untrained parts in words; "" where there is none."""
    lacking = [] if learned.regions else ["region embeddings"]
    lacking += [] if learned.boxes else ["boxes"]
    return f"trained {' or '.join(lacking)}" if lacking else ""


def learned_in(values: Mapping[str, float], config: TrainConfig) -> Learned:
    """What a window of steps taught: a term without a single region has no figure in `values`."""
    return Learned(
        regions="region" in values and config.loss.region_weight > 0,
        boxes="box_l1" in values and config.loss.box_weight > 0,
    )
