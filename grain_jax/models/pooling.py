"""Attention pooling of image tokens, as SigLIP has it for a CLS token (Zhai et al., 2023)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.config import VisionConfig
from grain_jax.models.decoder import Attention
from grain_jax.models.layers import LayerNorm, Mlp, named, normal, xavier_init
from grain_jax.models.weights import repeated


class AttentionPool(nn.Module):
    """One learned query over the tokens, then an MLP with a residual."""

    config: VisionConfig
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(self, tokens: Float[Array, "B P D"]) -> Float[Array, "B D"]:
        config, width = self.config, self.config.width
        mlp_dim = round(width * config.mlp_ratio)
        init = xavier_init(width, mlp_dim)
        probe = self.param("probe", named(normal(0.02), "embed"), (width,), jnp.float32)
        shape = (tokens.shape[0], 1, width)
        query = repeated(probe, shape, self.dtype, self.gradient_dtype)
        types = {"dtype": self.dtype, "gradient_dtype": self.gradient_dtype}
        attention = Attention(config.num_heads, init, **types, name="attention")
        x = attention(query, tokens, tokens)
        y = LayerNorm(config.norm_eps, dtype=self.dtype, name="norm")(x)
        mlp = Mlp(mlp_dim, config.activation, init, **types, name="mlp")
        return (x + mlp(y))[:, 0]
