"""GRAIN in JAX/Flax: CLIP-like pretraining that grounds textual descriptions in image regions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grain_jax.inference.predictor import Model
    from grain_jax.loading.predictor import load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Model` and `load` on first use: they bring jax, which `import grain_jax` alone need not."""
    if name not in ("Model", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grain_jax.inference.predictor import Model
    from grain_jax.loading.predictor import load

    return Model if name == "Model" else load
