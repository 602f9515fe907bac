"""What a run is at a step: parameters, optimizer, averages and counters, and how they start."""

import dataclasses
from typing import Any, no_type_check

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from grain_jax.config import TrainConfig
from grain_jax.parallel.sharding import parameter_shardings, replicated
from grain_jax.training.trainable import split_frozen


@no_type_check  # under tree_map its leaves become shardings or shape structs
@flax.struct.dataclass
class TrainState:
    """All that a checkpoint must hold to go on; the data is a function of `step`."""

    step: jax.Array  # int32, steps done, nonfinite ones included
    params: Any  # float32 tree
    opt_state: Any  # of the trained parameters alone
    ema_params: Any  # exponential average of params; None when off
    nonfinite_steps: jax.Array  # int32, steps whose loss or gradient was not finite: no update
    consecutive_nonfinite: jax.Array  # int32, such steps in a row up to now

    @property
    def inference_params(self) -> Any:
        """What evaluation and export use: the average when there is one."""
        return self.params if self.ema_params is None else self.ema_params


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, config: TrainConfig, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state, without computing anything.

    Raises ValueError for a mesh that cannot split a parameter.
    """
    boxed = abstract_boxed_params(model, config)
    params = nn.unbox(boxed)
    placed = _with_shardings(params, parameter_shardings(boxed, mesh))
    state = jax.eval_shape(lambda params: _start(params, optimizer, config), params)
    whole = replicated(mesh)
    shardings = jax.tree.map(lambda _: whole, state)
    of_params = jax.tree.map(lambda leaf: leaf.sharding, placed)
    of_trained, _ = split_frozen(of_params, config.optim)
    shardings = dataclasses.replace(
        shardings,
        params=of_params,
        ema_params=None if state.ema_params is None else of_params,
        opt_state=optax.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            state.opt_state,
            of_trained,
            transform_non_params=lambda _: whole,
        ),
    )
    return _with_shardings(state, shardings)


def abstract_boxed_params(model: nn.Module, config: TrainConfig) -> Any:
    """Shapes of the parameters, boxed with their logical axis names."""
    return jax.eval_shape(lambda: _init_params(model, config))


def new_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    abstract: TrainState,
) -> TrainState:
    """The state at step 0, made on the devices that will hold it; the same on every mesh."""

    def start() -> TrainState:
        return _start(nn.unbox(_init_params(model, config)), optimizer, config)

    return jax.jit(start, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def state_with(
    params: Any,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    abstract: TrainState,
) -> TrainState:
    """The state at step 0 with these parameters, on the devices of `abstract`; draws no weights."""

    def start(params: Any) -> TrainState:
        return _start(params, optimizer, config)

    return jax.jit(start, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(params)


def count_parameters(params: Any) -> int:
    """Numbers in the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _init_params(model: Any, config: TrainConfig) -> Any:
    size, data = config.model.image_size, config.data
    # Parameters do not depend on it, and this is traced without the mesh that says which device.
    model = model.clone(config=dataclasses.replace(model.config, attention="xla"))
    variables = model.init(
        jax.random.key(config.seed),
        jnp.zeros((1, size, size, 3), jnp.float32),
        jnp.zeros((1, data.caption_length), jnp.int32),
        jnp.zeros((1, data.max_regions, data.description_length), jnp.int32),
    )
    return variables["params"]


def _start(params: Any, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    trained, _ = split_frozen(params, config.optim)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trained),
        ema_params=jax.tree.map(jnp.copy, params) if config.optim.ema_decay else None,
        nonfinite_steps=jnp.zeros((), jnp.int32),
        consecutive_nonfinite=jnp.zeros((), jnp.int32),
    )


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
