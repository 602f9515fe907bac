"""Vision transformer (Dosovitskiy et al., 2021) as the official GRAIN builds it.

Differs from the plain ViT: LayerNorm on q and k of each head, `nn.Linear`'s default initialisation
in the blocks, and the output is all tokens after the final norm, CLS first. Fields of the config
make it the tower of CLIP or SigLIP instead.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grain_jax.config import VisionConfig
from grain_jax.models.attention import AttentionKind, pad_tokens
from grain_jax.models.layers import (
    Block,
    LayerNorm,
    Linear,
    apply_layers,
    constrain,
    named,
    normal,
    torch_init,
    uniform,
    xavier_init,
)
from grain_jax.models.positions import grid_positions
from grain_jax.models.weights import as_addend, repeated


class VisionTransformer(nn.Module):
    """Image to tokens: CLS first, unless `pooling` is "map", then a grid of patches."""

    config: VisionConfig
    image_size: int  # pixels
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """`images` are normalised. Raises ValueError for another size than the model's."""
        config, size = self.config, self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"The model takes images of {(size, size, 3)} (height, width, channels), got "
                f"{images.shape[1:]}; resize them or change model.image_size."
            )
        side, patch, width = size // config.patch_size, config.patch_size, config.width
        mlp_dim = round(width * config.mlp_ratio)
        xavier = config.initializer == "xavier"
        init = xavier_init(width, mlp_dim) if xavier else torch_init(width, mlp_dim)

        # As a matmul on rearranged pixels, not a convolution: its gradient is far cheaper on CPU.
        # What is left beside the last whole patch is not looked at, as the convolution has it.
        x = images[:, : side * patch, : side * patch].astype(self.dtype)
        x = x.reshape(-1, side, patch, side, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, patch, patch, 3)
        bound = (3 * patch * patch) ** -0.5
        x = Linear(
            (width,),
            (None, None, None, "embed"),
            uniform(bound),
            uniform(bound) if config.patch_bias else None,
            num_inputs=3,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="patch",
        )(x)  # [B, side * side, D]
        num_cls = int(config.pooling == "cls")

        def position_init(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
            if config.position_init == "normal":
                return 0.02 * jax.random.normal(key, shape, dtype)
            grid = jnp.asarray(grid_positions(side, width), dtype)
            return jnp.pad(grid, ((num_cls, 0), (0, 0)))  # CLS at the origin of nothing: zeros

        if num_cls:
            cls = self.param("cls", named(normal(1e-6), "embed"), (width,), jnp.float32)
            cls_token = repeated(cls, (x.shape[0], 1, width), self.dtype, self.gradient_dtype)
            x = jnp.concatenate([cls_token, x], axis=1)
        position = self.param(
            "position", named(position_init, None, "embed"), (x.shape[1], width), jnp.float32
        )
        x = x + as_addend(position, x.shape, self.dtype, self.gradient_dtype)
        if config.pre_norm:
            x = LayerNorm(config.norm_eps, dtype=self.dtype, name="pre_norm")(x)
        num_tokens = x.shape[1]
        x, chosen = pad_tokens(x, self.attention, num_heads=config.num_heads)
        x = constrain(x, "batch", None, None)
        x, _ = apply_layers(
            Block,
            x,
            depth=config.depth,
            scan=self.scan_layers,
            remat=self.remat,
            num_heads=config.num_heads,
            mlp_dim=mlp_dim,
            activation=config.activation,
            eps=config.norm_eps,
            initializers=init,
            qk_norm=config.qk_norm,
            attention=chosen,
            num_tokens=num_tokens,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
        )
        return LayerNorm(config.norm_eps, dtype=self.dtype, name="norm")(x[:, :num_tokens])
