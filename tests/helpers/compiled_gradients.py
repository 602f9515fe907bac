"""Compiles a training step for four TPUs that are not there: `compiled_gradients.py DTYPE FSDP`.

Prints the type and numbers, as JSON, of every array that the devices add up.
"""

import json
import math
import re
import sys

from tiny_run import tiny_config

from grain_jax.benchmarking.compiled_step import abstract_batch, collectives
from grain_jax.benchmarking.topology import open_topology
from grain_jax.config import MeshConfig
from grain_jax.models.image_text import build_model
from grain_jax.parallel.sharding import make_mesh, use_mesh
from grain_jax.training.optimizer import make_optimizer, make_schedule
from grain_jax.training.state import abstract_state
from grain_jax.training.step import make_train_step

SUMS = ("all-reduce", "reduce-scatter")
# Parts of an array put together by a sum, each among zeros: nothing is rounded.
GATHERED = re.compile(r"all-reduce(-start)?\(%dynamic-update-slice")


def main(gradient_dtype: str, fsdp: int) -> None:
    """`gradient_dtype`: of the model. `fsdp`: devices that share the parameters, of four."""
    config = tiny_config()
    config.model.dtype, config.model.gradient_dtype = "bfloat16", gradient_dtype
    config.model.attention = "xla"
    mesh = make_mesh(MeshConfig(fsdp=fsdp), open_topology("v5e:2x2").devices)
    model, optimizer = build_model(config.model), make_optimizer(config.optim)
    schedule = make_schedule(config.optim, steps=20, warmup_steps=1)
    abstract = abstract_state(model, optimizer, config, mesh)
    step = make_train_step(model, optimizer, schedule, config, mesh=mesh, abstract=abstract)
    with use_mesh(mesh):
        text = step.lower(abstract, abstract_batch(config, mesh)).compile().as_text()
    found = [
        (one.collective, dtype, math.prod(shape))
        for one in collectives(text)
        if one.collective in SUMS and not GATHERED.search(one.text)
        for dtype, shape in one.shapes
    ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
