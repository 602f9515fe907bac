"""Strict test environment: 8 fake CPU devices, strict promotion, shapes checked at run time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of these tests: without LLVM's optimisations it takes a fifth.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("grain_jax", "beartype.beartype")
