"""Parts of the three transformers: linear map, norm, attention, MLP, block, and a stack of layers.

Everything computes in `dtype` and keeps its parameters in float32. Parameters carry logical axis
names ("embed" model width, "mlp" hidden width, "heads", "kv" head size, "joint" embedding space,
"vocab", "layers" of a scanned stack), which the sharding table maps to the mesh. A fused
query-key-value kernel is [D, heads, 3, head size]: one matmul, and still cut along heads; three
where a TPU's attention kernel takes them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd
from jaxtyping import Array, Float, Int

from grain_jax.models.attention import (
    AttentionKind,
    ChosenAttention,
    attend,
    attend_in_stream,
    chosen_attention,
    chosen_in_stream,
)
from grain_jax.models.dropout import Dropout
from grain_jax.models.norms import norm_by_products, takes_products
from grain_jax.models.pallas_attention import pallas_attention
from grain_jax.models.pallas_stream import pallas_attention_in_stream
from grain_jax.models.weights import as_weight, product

Initializer = Callable[..., Array]
AxisNames = tuple[str | None, ...]


def uniform(bound: float) -> Initializer:
    """Initializer, uniform in [-bound, bound]."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


normal = nn.initializers.normal
zeros: Initializer = nn.initializers.zeros_init()


def named(init: Initializer, *axes: str | None) -> Initializer:
    """The initializer, with a logical name for each axis of what it makes."""
    boxed: Any = nn.with_logical_partitioning(init, axes)
    return boxed


def constrain(x: Array, *axes: str | None) -> Array:
    """Asks for `x` to be laid out over the mesh by its logical axes; nothing without a mesh."""
    return spmd.with_logical_constraint(x, axes)


@dataclass(frozen=True)
class BlockInit:
    """Initializers of one block; a fused kernel is drawn as the one matrix it stands for."""

    qkv: Initializer
    qkv_bias: Initializer
    out: Initializer
    out_bias: Initializer
    fc1: Initializer
    fc1_bias: Initializer
    fc2: Initializer
    fc2_bias: Initializer


def torch_init(width: int, mlp_dim: int) -> BlockInit:
    """`nn.Linear`'s default, uniform within 1/sqrt(inputs), which the official ViT blocks keep."""
    inner, outer = uniform(width**-0.5), uniform(mlp_dim**-0.5)
    return BlockInit(inner, inner, inner, inner, inner, inner, outer, outer)


def xavier_init(width: int, mlp_dim: int, *, torch_mlp_bias: bool = False) -> BlockInit:
    """Xavier-uniform weights, zero biases. The fused kernel counts as one matrix, as in torch.

    `torch_mlp_bias` keeps `nn.Linear`'s biases in the MLP, as the official decoder does.
    """
    mlp = uniform(math.sqrt(6 / (width + mlp_dim)))
    bias1, bias2 = zeros, zeros
    if torch_mlp_bias:
        bias1, bias2 = uniform(width**-0.5), uniform(mlp_dim**-0.5)
    qkv, out = uniform(math.sqrt(6 / (4 * width))), uniform(math.sqrt(6 / (2 * width)))
    return BlockInit(qkv, zeros, out, zeros, mlp, bias1, mlp, bias2)


def clip_text_init(width: int, mlp_dim: int, depth: int) -> BlockInit:
    """CLIP's text tower: normal weights, smaller into the residual stream the deeper it is."""
    residual = normal((2 * depth * width) ** -0.5)
    return BlockInit(
        qkv=normal(width**-0.5),
        qkv_bias=zeros,
        out=residual,
        out_bias=zeros,
        fc1=normal((2 * width) ** -0.5),
        fc1_bias=uniform(width**-0.5),
        fc2=residual,
        fc2_bias=uniform(mlp_dim**-0.5),
    )


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by the error function, as torch's default.

    `jax.nn.gelu` goes through erfc, which XLA on a CPU computes anew for every product that reads
    it: 1.8 times the time of an MLP of ViT-B/16 (docs/experiments.md).
    """
    y = x.astype(jnp.float32)  # in half precision 1 + erf cancels below -1
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """CLIP's x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by its tanh approximation, as SigLIP."""
    with jax.numpy_dtype_promotion("standard"):  # jax's own code relies on it
        return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


def activation_fn(name: str) -> Callable[[Array], Array]:
    """The activation of that name; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"Unknown activation {name!r}; choose one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def affine(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    *,
    num_inputs: int = 1,
) -> Float[Array, "..."]:
    """Contracts the last `num_inputs` axes of x with the first of `kernel`; the rest are features.

    One product of two matrices: with more axes, XLA on CPU first copies whole operands into another
    order. Axes are merged where only the first of them may be sharded, which keeps their sharding.
    The bias is added in float32, so that its gradient, a sum over all rows, is summed in float32.
    """
    lead, inputs = x.shape[: x.ndim - num_inputs], math.prod(kernel.shape[:num_inputs])
    y = product(x.reshape(-1, inputs), kernel)
    y = y.reshape(*lead, *kernel.shape[num_inputs:])
    if bias is None:
        return y
    bias = bias.reshape((1,) * len(lead) + bias.shape)
    return (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(y.dtype)


class Linear(nn.Module):
    """Affine map of the last `num_inputs` axes to `features`, one or several axes."""

    features: tuple[int, ...]
    axes: AxisNames  # of the kernel: inputs, then features
    kernel_init: Initializer
    bias_init: Initializer | None = None  # None: no bias
    num_inputs: int = 1
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # of the kernel's gradient; None: `dtype`

    @nn.compact
    def __call__(self, x: Float[Array, "..."], *, apart: bool = False) -> Any:
        """The features; with `apart` a list of them for each index of their second axis.

        By a product for each, whose results need not be cut out of one array.
        """
        inputs = x.shape[x.ndim - self.num_inputs :]
        kernel_init = named(self.kernel_init, *self.axes)
        kernel = self.param("kernel", kernel_init, (*inputs, *self.features), jnp.float32)
        bias = None
        if self.bias_init is not None:
            bias_init = named(self.bias_init, *self.axes[self.num_inputs :])
            bias = self.param("bias", bias_init, self.features, jnp.float32)
        x, kernel = x.astype(self.dtype), as_weight(kernel, self.dtype, self.gradient_dtype)
        if not apart:
            return affine(x, kernel, bias, num_inputs=self.num_inputs)
        axis, several = self.num_inputs + 1, []
        for i in range(self.features[1]):
            one = jax.lax.index_in_dim(kernel, i, axis, keepdims=False)
            kept = one.shape[self.num_inputs :]
            # Flat, or XLA stores the results by heads and copies them for the kernel.
            flat = one.reshape(*one.shape[: self.num_inputs], -1)
            one_bias = None if bias is None else bias[:, i].reshape(-1)
            y = affine(x, flat, one_bias, num_inputs=self.num_inputs)
            several.append(y.reshape(*y.shape[:-1], *kept))
        return several


class LayerNorm(nn.Module):
    """Normalises the last axis; statistics in float32 by the two-pass formula, in bfloat16 on TPUs
    by `norm_by_products`.
    """

    eps: float
    axis: str | None = "embed"  # logical name of the normalised axis
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], *, apply: bool = True) -> Any:
        """`x` normalised; without `apply`, scale and bias for a kernel that does it, [D] each."""

        def parameter(name: str, init: Initializer) -> Array:
            return self.param(name, named(init, self.axis), (x.shape[-1],), jnp.float32)

        scale, bias = parameter("scale", nn.initializers.ones_init()), parameter("bias", zeros)
        if not apply:
            return scale, bias
        if takes_products(x, self.dtype):
            return norm_by_products(x, scale, bias, self.eps)
        scale, bias = (value.reshape((1,) * (x.ndim - 1) + value.shape) for value in (scale, bias))
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention; query, key and value of one kernel, and of one matmul on most."""

    num_heads: int
    initializers: BlockInit
    causal: bool = False
    qk_norm_eps: float | None = None  # LayerNorm on q and k of each head; None: off
    implementation: AttentionKind = "auto"
    num_tokens: int | None = None  # those that are not padding, which comes last; None: all
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # as `Linear`

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B K C"] | None = None
    ) -> Float[Array, "B T D"]:
        """`positions`: in its text of each token of streams of K * C = T tokens, to see its own
        text alone.
        """
        width = x.shape[-1]
        head_size = width // self.num_heads
        if positions is not None and not self.causal:
            raise ValueError("Attention within a stream is causal; given causal=False.")
        shared: Any = {
            "dtype": self.dtype,
            "head_size": head_size,
            "num_heads": self.num_heads,
        }
        chosen: ChosenAttention
        if positions is None:
            chosen = chosen_attention(self.implementation, num_tokens=x.shape[1], **shared)
        else:
            chosen = chosen_in_stream(self.implementation, reach=positions.shape[2], **shared)
        pallas = chosen == "pallas"
        qkv = Linear(
            (self.num_heads, 3, head_size),
            ("embed", "heads", None, "kv"),
            self.initializers.qkv,
            self.initializers.qkv_bias,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="qkv",
        )(x, apart=pallas)  # [B, T, N, 3, H], or three of [B, T, N, H]
        query, key, value = qkv if pallas else (qkv[:, :, :, i] for i in range(3))
        norms = None
        if self.qk_norm_eps is not None:
            query_norm = LayerNorm(self.qk_norm_eps, "kv", self.dtype, name="q_norm")
            key_norm = LayerNorm(self.qk_norm_eps, "kv", self.dtype, name="k_norm")
            if pallas and positions is None:  # the kernel normalises on the way
                norms = jnp.stack([*query_norm(query, apply=False), *key_norm(key, apply=False)])
            else:
                query, key = query_norm(query), key_norm(key)
        if positions is not None and pallas:
            mixed = pallas_attention_in_stream(query, key, value, positions)
        elif positions is not None:
            mixed = attend_in_stream(query, key, value, positions)
        elif pallas:
            mixed = pallas_attention(
                query,
                key,
                value,
                causal=self.causal,
                num_keys=self.num_tokens,
                norms=norms,
                norm_eps=self.qk_norm_eps or 0.0,
            )
        else:
            mixed = attend(
                query,
                key,
                value,
                causal=self.causal,
                implementation="cudnn" if chosen == "cudnn" else "xla",
                num_keys=self.num_tokens,
            )
        mixed = constrain(mixed, "batch", None, "heads", "kv")
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


class Mlp(nn.Module):
    """Two linear maps with an activation (and, in training, dropout) between."""

    hidden: int
    activation: str
    initializers: BlockInit
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # as `Linear`

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], rows: Int[Array, "B"] | None = None
    ) -> Float[Array, "B T D"]:
        """`rows`: each row's number in the global batch, for dropout (default: its place)."""
        width = x.shape[-1]
        x = Linear(
            (self.hidden,),
            ("embed", "mlp"),
            self.initializers.fc1,
            self.initializers.fc1_bias,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="fc1",
        )(x)
        x = activation_fn(self.activation)(constrain(x, "batch", None, "mlp"))
        x = Dropout(self.dropout, deterministic=not self.train)(x, rows)
        return Linear(
            (width,),
            ("mlp", "embed"),
            self.initializers.fc2,
            self.initializers.fc2_bias,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="fc2",
        )(x)


class Block(nn.Module):
    """Pre-norm transformer block of the image and the text tower."""

    num_heads: int
    mlp_dim: int
    activation: str
    eps: float
    initializers: BlockInit
    causal: bool = False
    qk_norm: bool = False
    attention: AttentionKind = "auto"
    num_tokens: int | None = None  # those that are not padding, which comes last; None: all
    dtype: Any = jnp.float32
    gradient_dtype: Any = None  # as `Linear`

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B K C"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        """Returns (x, None): a layer of `apply_layers` without an output of its own.

        `positions`: as of `SelfAttention`.
        """
        x = x + SelfAttention(
            self.num_heads,
            self.initializers,
            causal=self.causal,
            qk_norm_eps=self.eps if self.qk_norm else None,
            implementation=self.attention,
            num_tokens=self.num_tokens,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="attention",
        )(LayerNorm(self.eps, dtype=self.dtype, name="norm1")(x), positions)
        x = x + Mlp(
            self.mlp_dim,
            self.activation,
            self.initializers,
            dtype=self.dtype,
            gradient_dtype=self.gradient_dtype,
            name="mlp",
        )(LayerNorm(self.eps, dtype=self.dtype, name="norm2")(x))
        return constrain(x, "batch", None, None), None


REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # not the attention matrix
    "full": None,
}


def apply_layers(
    layer: type[nn.Module],
    x: Array,
    *shared: Array,
    depth: int,
    scan: bool,
    remat: str,
    **fields: Any,
) -> tuple[Array, Any]:
    """Runs `depth` layers, called inside a compact module; `shared` is given to every layer.

    A layer maps (x, *shared) to (x, output). Returns the last x and the outputs, layers on a second
    axis after the batch (None where the layers have none). Parameters are `layer_0`, `layer_1`,
    ..., or with `scan` one `layers` stacked on a first axis. `remat`: "none", or recompute all but
    matmul outputs ("dots") or all ("full") in the backward pass.
    """
    if remat != "none":
        if remat not in REMAT_POLICIES:
            raise ValueError(f"Unknown remat {remat!r}; choose one of {['none', *REMAT_POLICIES]}.")
        layer = nn.remat(layer, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if scan:
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            out_axes=1,
            length=depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(**fields, name="layers")(x, *shared)
    outputs = []
    for i in range(depth):
        x, output = layer(**fields, name=f"layer_{i}")(x, *shared)
        outputs.append(output)
    return x, jax.tree.map(lambda *values: jnp.stack(values, axis=1), *outputs)
