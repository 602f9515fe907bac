"""Region decoder: a DETR decoder (Carion et al., 2020) without classes, plus a query for the image.

Region queries predict a box and an embedding each; the image query, the last, the image embedding.
As official: pre-norm, no positions on the memory, CLS token part of the memory, zero target
with learned query positions.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grain_jax.config import DecoderConfig
from grain_jax.models.attention import (
    TOKENS_MULTIPLE,
    attend,
    attend_heads_as_rows,
    takes_heads_as_rows,
    without_padding,
)
from grain_jax.models.dropout import Dropout
from grain_jax.models.layers import (
    BlockInit,
    LayerNorm,
    Linear,
    Mlp,
    affine,
    apply_layers,
    constrain,
    named,
    normal,
    uniform,
    xavier_init,
)
from grain_jax.models.outputs import DecoderOutput
from grain_jax.models.weights import as_addend, as_weight, product

NORM_EPS = 1e-5  # torch's default, which the official decoder keeps


class Attention(nn.Module):
    """Multi-head attention, one fused kernel; queries, keys and values have their own inputs."""

    num_heads: int
    initializers: BlockInit
    dropout: float = 0.0  # of attention weights, in training
    train: bool = False
    num_keys: int | None = None  # those that are not padding, which comes last; None: all
    heads_as_rows: bool = False  # `attend_heads_as_rows`
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(
        self,
        query_input: Float[Array, "B T D"],
        key_input: Float[Array, "B S D"],
        value_input: Float[Array, "B S D"],
        rows: Int[Array, "B"] | None = None,  # their numbers in the global batch, for dropout
    ) -> Float[Array, "B T D"]:
        width = query_input.shape[-1]
        shape = (self.num_heads, 3, width // self.num_heads)
        names = ("heads", None, "kv")
        kernel_init = named(self.initializers.qkv, "embed", *names)
        kernel = self.param("kernel", kernel_init, (width, *shape), jnp.float32)
        kernel = as_weight(kernel, self.dtype, self.gradient_dtype)
        bias_init = named(self.initializers.qkv_bias, *names)
        bias = self.param("bias", bias_init, shape, jnp.float32)

        def project(x: Array, first: int, last: int) -> list[Array]:  # of queries, keys, values
            y = affine(x, kernel[:, :, first : last + 1], bias[:, first : last + 1])
            return [y[:, :, :, i] for i in range(last + 1 - first)]  # [B, T, N, H] each

        drop = None
        if self.train and self.dropout > 0:
            dropout = Dropout(self.dropout, deterministic=False, num_drawn=self.num_keys)
            drop = functools.partial(dropout, rows=rows)
        if self.heads_as_rows:
            inputs = (query_input, key_input, value_input)
            flat = [
                affine(x, kernel[:, :, i].reshape(width, -1), bias[:, i].reshape(-1))
                for i, x in enumerate(inputs)
            ]
            mixed = attend_heads_as_rows(
                *flat, num_heads=self.num_heads, num_keys=self.num_keys, drop=drop
            )
            mixed = mixed.reshape(*mixed.shape[:-1], self.num_heads, -1)
        else:
            # Inputs that are the same share a matmul.
            if query_input is key_input:
                query, key, value = *project(query_input, 0, 1), *project(value_input, 2, 2)
            else:
                query, key, value = *project(query_input, 0, 0), *project(key_input, 1, 2)
            if drop is None:  # so few queries that flash attention has nothing to save
                mixed = attend(query, key, value, implementation="xla", num_keys=self.num_keys)
            else:
                logits = jnp.einsum(
                    "btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32
                ) * (query.shape[-1] ** -0.5)
                weights = drop(jax.nn.softmax(without_padding(logits, self.num_keys)))
                mixed = jnp.einsum("bnts,bsnh->btnh", weights.astype(self.dtype), value)
        return Linear(
            (width,),
            ("heads", "kv", "embed"),
            self.initializers.out,
            self.initializers.out_bias,
            num_inputs=2,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="out",
        )(mixed)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the image, ReLU MLP; pre-norm."""

    num_heads: int
    mlp_dim: int
    initializers: BlockInit
    dropout: float
    train: bool
    outputs: bool = False  # keep every layer's output, not only the last
    num_tokens: int | None = None  # of the memory, those that are not padding; None: all
    heads_as_rows: bool = False  # in cross-attention; of six queries alone heads apart cost less
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        query: Float[Array, "1 T D"],
        memory: Float[Array, "B P D"],
        rows: Int[Array, "B"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"] | None]:
        """Returns x to carry on, and again as this layer's output if `outputs`, else None.

        `query`: learned positions. `rows`: numbers of the rows in the global batch, for dropout.
        """

        types = {"dtype": self.dtype, "gradient_dtype": self.gradient_dtype}
        query = as_addend(query, x.shape, self.dtype, self.gradient_dtype)

        def norm(name: str, x: Array) -> Array:
            return LayerNorm(NORM_EPS, dtype=self.dtype, name=name)(x)

        def drop(x: Array) -> Array:
            return Dropout(self.dropout, deterministic=not self.train)(x, rows)

        def attention(name: str, **fields: Any) -> Attention:
            return Attention(
                self.num_heads,
                self.initializers,
                self.dropout,
                self.train,
                **fields,
                **types,
                name=name,
            )

        y = norm("norm1", x)
        positioned = y + query
        x = x + drop(attention("self_attention")(positioned, positioned, y, rows))
        y = norm("norm2", x) + query
        cross_attention = attention(
            "cross_attention", num_keys=self.num_tokens, heads_as_rows=self.heads_as_rows
        )
        x = x + drop(cross_attention(y, memory, memory, rows))
        mlp = Mlp(
            self.mlp_dim,
            "relu",
            self.initializers,
            self.dropout,
            self.train,
            **types,
            name="mlp",
        )
        x = x + drop(mlp(norm("norm3", x), rows))
        x = constrain(x, "batch", None, None)
        return x, x if self.outputs else None


class BoxHead(nn.Module):
    """Box of a region query, as DETR: 3 layers, ReLU, sigmoid. Official: `bbox_embed`."""

    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(self, queries: Float[Array, "*batch D"]) -> Float[Array, "*batch 4"]:
        """Returns (cx, cy, w, h) in [0, 1] of the image."""
        width = queries.shape[-1]
        init = uniform(width**-0.5)
        types = {"dtype": self.dtype, "gradient_dtype": self.gradient_dtype}

        def layer(name: str, x: Array, features: int, axes: tuple[str | None, ...]) -> Array:
            return Linear((features,), axes, init, init, **types, name=name)(x)

        x = jax.nn.relu(layer("layer0", queries, width, ("embed", "mlp")))
        x = jax.nn.relu(layer("layer1", x, width, ("mlp", "embed")))
        return jax.nn.sigmoid(layer("layer2", x, 4, ("embed", None)).astype(jnp.float32))


class RegionDecoder(nn.Module):
    """Image tokens (CLS if there is one, then a square grid) to embeddings and boxes."""

    config: DecoderConfig
    embed_dim: int
    scan_layers: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of weights; None: `dtype`

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B P C"],
        *,
        train: bool = False,
        auxiliary_boxes: bool = False,
        rows: Int[Array, "B"] | None = None,
    ) -> DecoderOutput:
        """Embeddings and boxes; with `auxiliary_boxes`, the boxes of the earlier layers too.

        `train` turns dropout on, which then needs the "dropout" random stream. Its masks are
        functions of `rows`, the rows' numbers in the global batch (default: their places here).
        """
        config, width = self.config, self.config.width
        rows = jnp.arange(tokens.shape[0], dtype=jnp.int32) if rows is None else rows
        rows = constrain(rows, "batch")  # and so each device draws masks of its own rows
        num_queries, init = config.num_queries, uniform(tokens.shape[-1] ** -0.5)
        types = {"dtype": self.dtype, "gradient_dtype": self.gradient_dtype}
        num_tokens = tokens.shape[1]
        as_rows = takes_heads_as_rows(
            config.num_heads, num_queries=config.num_queries + 1, width=width
        )
        if as_rows:  # or XLA copies keys and values to other layouts
            padding = -num_tokens % TOKENS_MULTIPLE
            tokens = jnp.pad(tokens, ((0, 0), (0, padding), (0, 0)))
        memory = Linear((width,), ("embed", None), init, **types, name="input")(tokens)
        memory = LayerNorm(NORM_EPS, dtype=self.dtype, name="input_norm")(memory)

        query_init = named(normal(1.0), None, "embed")
        query = self.param("query", query_init, (num_queries + 1, width), jnp.float32)
        # Of the memory, so that a scan over layers finds it on the same devices from the start.
        x = jnp.zeros_like(memory[:, :1]) + jnp.zeros((1, num_queries + 1, width), self.dtype)
        x, layers = apply_layers(
            DecoderLayer,
            x,
            as_weight(query[None], self.dtype, self.gradient_dtype),
            memory,
            rows,
            depth=config.depth,
            scan=self.scan_layers,
            remat=self.remat,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            initializers=xavier_init(width, config.mlp_dim, torch_mlp_bias=True),
            dropout=config.dropout,
            train=train,
            outputs=auxiliary_boxes,
            num_tokens=num_tokens,
            heads_as_rows=as_rows,
            **types,
        )
        # Batch first, as everywhere: `affine` merges the leading axes, and a batch that is not the
        # first of them could only be split after every device had all of it.
        if layers is None:
            layers = x[:, None]
        layers = LayerNorm(NORM_EPS, dtype=self.dtype, name="norm")(layers)  # [B, A+1, Q+1, D]
        boxes = BoxHead(**types, name="box_head")(layers[:, :, :num_queries])

        def projection(name: str) -> Array:
            init = named(normal(width**-0.5), "embed", "joint")
            value = self.param(name, init, (width, self.embed_dim), jnp.float32)
            return as_weight(value, self.dtype, self.gradient_dtype)

        to_image = projection("image_projection")
        to_region = to_image if config.share_projection else projection("region_projection")
        image_embed = product(layers[:, -1, num_queries], to_image)
        region_embed = product(layers[:, -1, :num_queries], to_region)
        return DecoderOutput(
            image_embed=image_embed.astype(jnp.float32),
            region_embed=region_embed.astype(jnp.float32),
            boxes=boxes[:, -1],
            auxiliary_boxes=boxes[:, :-1] if auxiliary_boxes else None,
        )
