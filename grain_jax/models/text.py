"""Text transformer of CLIP (Radford et al., 2021): causal, pooled at end-of-text.

Fields of the config make it SigLIP's instead: not causal, pooled at the last position, with a bias
on the projection.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from grain_jax.config import TextConfig
from grain_jax.models.attention import AttentionKind, pad_tokens
from grain_jax.models.layers import (
    Block,
    LayerNorm,
    apply_layers,
    clip_text_init,
    constrain,
    named,
    normal,
    zeros,
)
from grain_jax.models.text_stream import TextStream
from grain_jax.models.weights import as_addend, as_weight, product


class TextTransformer(nn.Module):
    """Token ids to one embedding a text.

    `pooling` "end": the end-of-text id is the highest of the vocabulary, so the first maximum of
    the ids is where to pool. Where attention is causal too, padding changes nothing; texts may be
    cut right after their end. "last": at the last position, so every text has to fill them all.
    """

    config: TextConfig
    embed_dim: int
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(
        self, texts: Integer[Array, "N L"] | TextStream
    ) -> Float[Array, "N E"] | Float[Array, "S N E"]:
        """Embeddings in float32, not normalised: [N, E] of padded token ids, [S, N, E] of a stream
        (zeros for empty texts). Raises ValueError for too long texts, and for a stream where
        padding is looked at.
        """
        config, stream = self.config, None
        if isinstance(texts, TextStream):
            stream, length = texts, texts.longest
            tokens = texts.tokens.reshape(len(texts.tokens), -1)
        else:
            tokens, length = texts, texts.shape[1]
        if stream is not None and not (config.causal and config.pooling == "end"):
            raise ValueError(
                "Texts are laid end to end for a causal text tower pooled at end-of-text only; "
                f"this is model.text.causal={config.causal} and pooling={config.pooling!r}. Set "
                "model.text_tokens_per_image=0."
            )
        if length > config.context_length:
            raise ValueError(
                f"Texts of {length} tokens do not fit the text tower's {config.context_length} "
                "positions; lower data.caption_length and data.description_length or raise "
                "model.text.context_length."
            )
        table = self.param(
            "token",
            named(normal(config.token_init_std), "vocab", "embed"),
            (config.vocab_size, config.width),
            jnp.float32,
        )
        position = self.param(
            "position",
            named(normal(0.01), None, "embed"),
            (config.context_length, config.width),
            jnp.float32,
        )
        mlp_dim = round(config.width * config.mlp_ratio)
        # A row of the table whole, a split of rows over "vocab" kept: looked up in columns, the
        # rows found would have to be put together for the whole batch on every device.
        table = constrain(table, "vocab", None)
        x = jnp.take(table, tokens, axis=0, mode="clip").astype(self.dtype)
        chosen, streamed = self.attention, []
        if stream is None:
            x = x + as_addend(position[None, :length], x.shape, self.dtype, self.gradient_dtype)
            x, chosen = pad_tokens(x, self.attention, num_heads=config.num_heads)
        else:
            places = stream.positions.reshape(tokens.shape)
            position = constrain(position, None, None)  # as the table of tokens
            x = x + jnp.take(position, places, axis=0, mode="clip").astype(self.dtype)
            streamed = [stream.positions]
        x = constrain(x, "batch", None, None)
        x, _ = apply_layers(
            Block,
            x,
            *streamed,
            depth=config.depth,
            scan=self.scan_layers,
            remat=self.remat,
            num_heads=config.num_heads,
            mlp_dim=mlp_dim,
            activation=config.activation,
            eps=config.norm_eps,
            initializers=clip_text_init(config.width, mlp_dim, config.depth),
            causal=config.causal,
            attention=chosen,
            num_tokens=None if config.causal else length,  # a causal mask hides the padding
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
        )
        if stream is not None:
            x = jnp.take_along_axis(x, stream.ends[:, :, None], axis=1)  # [S, N, D]
        elif config.pooling == "end":
            end = tokens.argmax(axis=1)
            x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]  # [N, D]
        else:
            x = x[:, length - 1]
        x = LayerNorm(config.norm_eps, dtype=self.dtype, name="norm")(x)
        projection = self.param(
            "projection",
            named(normal(config.width**-0.5), "embed", "joint"),
            (config.width, self.embed_dim),
            jnp.float32,
        )
        x = product(x, as_weight(projection, self.dtype, self.gradient_dtype))
        if config.projection_bias:
            bias = self.param("bias", named(zeros, "joint"), (self.embed_dim,), jnp.float32)
            x = x + as_addend(bias, x.shape, self.dtype, self.gradient_dtype)
        x = x.astype(jnp.float32)
        return x if stream is None else jnp.where(stream.lengths[:, :, None] > 0, x, 0.0)
