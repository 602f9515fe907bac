"""The detectors there are, by the `model_type` of their config.json."""

from collections.abc import Callable

from grain_jax.annotation.backends.detector import Detector
from grain_jax.annotation.backends.grounding_dino import GroundingDinoDetector
from grain_jax.annotation.backends.owl import OwlDetector
from grain_jax.annotation.backends.torch_parts import model_type

DETECTORS: dict[str, Callable[..., Detector]] = {
    "owlv2": OwlDetector,
    "owlvit": OwlDetector,
    "grounding-dino": GroundingDinoDetector,
    "mm-grounding-dino": GroundingDinoDetector,
}


def open_detector(
    name: str, *, device: str = "auto", dtype: str = "auto", official_images: bool = False
) -> Detector:
    """The detector of a folder, or of a name on the Hugging Face hub.

    Args:
        name: "owner/name", "owner/name@revision", or a folder.
        device, dtype: as in `load_parts`.
        official_images: as in `OwlDetector`.

    Raises ValueError where it cannot be opened, or is a model of another kind.
    """
    kind = model_type(name)
    if kind not in DETECTORS:
        raise ValueError(
            f"--detector={name} is a model of type {kind!r}; expected one of "
            f"{', '.join(sorted(DETECTORS))}."
        )
    return DETECTORS[kind](name, device=device, dtype=dtype, official_images=official_images)
