"""Moments of Adam in a checkpoint that was written while other parameters were trained.

The optimizer has moments of trained parameters alone (`trainable`), and a run may be resumed with
others frozen. Checkpoints of versions before have the moments of frozen ones too, as zeros.
"""

import ast
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from grain_jax.paths import AnyPath
from grain_jax.training.state import TrainState

MOMENTS = ("mu", "nu")  # fields of the state of Adam
Flat = dict[str, Any]  # a tree of parameters by their names


def as_stored(abstract: TrainState, folder: AnyPath) -> TrainState:
    """`abstract` with moments of the parameters that have some in `folder`.

    `abstract` itself where they are the same. `folder` is where Orbax wrote the optimizer. Raises
    ValueError for moments of parameters that the model does not have.
    """
    stored = _stored_names(folder)
    wanted = _moment_names(abstract.opt_state)
    if stored == wanted:
        return abstract
    leaves = _abstract_moments(abstract)
    if unknown := sorted(stored - set(leaves)):
        raise ValueError(
            f"{folder} has optimizer state of {len(unknown)} parameters that the model does not "
            f"have, {unknown[0]!r} first; give the settings of the run that wrote it."
        )
    return _replaced(abstract, lambda _: {name: leaves[name] for name in sorted(stored)})


def with_moments_of(state: TrainState, abstract: TrainState) -> TrainState:
    """`state` with moments of the parameters of `abstract` alone, 0 where it has none."""
    leaves = _abstract_moments(abstract)
    wanted = sorted(_moment_names(abstract.opt_state))

    def moments(found: Flat) -> Flat:
        return {name: found[name] if name in found else _zeros(leaves[name]) for name in wanted}

    return _replaced(state, moments)


def _abstract_moments(abstract: TrainState) -> Flat:
    """A moment of every parameter, trained or not, in the type of those that are there."""
    (adam,) = filter(_is_adam, jax.tree.leaves(abstract.opt_state, is_leaf=_is_adam))
    dtype = jax.tree.leaves(adam.mu)[0].dtype
    leaves = flax.traverse_util.flatten_dict(abstract.params, sep="/")
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        for name, leaf in leaves.items()
    }


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)


def _replaced(state: TrainState, change: Callable[[Flat], Flat]) -> TrainState:
    def moved(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        return part._replace(
            **{
                name: flax.traverse_util.unflatten_dict(
                    change(flax.traverse_util.flatten_dict(getattr(part, name), sep="/")), sep="/"
                )
                for name in MOMENTS
            }
        )

    opt_state = jax.tree.map(moved, state.opt_state, is_leaf=_is_adam)
    return dataclasses.replace(state, opt_state=opt_state)


def _moment_names(opt_state: Any) -> set[str]:
    (adam,) = filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam))
    return set(flax.traverse_util.flatten_dict(adam.mu, sep="/"))


def _is_adam(part: Any) -> bool:
    return isinstance(part, optax.ScaleByAdamState)


def _stored_names(folder: AnyPath) -> set[str]:
    """Names of the parameters with moments in what Orbax wrote.

    Its list of arrays is read, whose keys are tuples such as "('opt_state', '1', 'mu', 'vision',
    'cls')".
    """
    listed = json.loads((folder / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"]
    keys = (tuple(map(str, ast.literal_eval(key))) for key in listed)
    return {"/".join(key[key.index("mu") + 1 :]) for key in keys if "mu" in key}
