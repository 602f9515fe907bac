"""Whether a training step fits devices that need not be there, what to change, and what is best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from grain_jax.benchmarking.candidates import Candidate, cannot_fit
from grain_jax.benchmarking.compiled_step import (
    CompiledStep,
    OutOfMemoryError,
    compile_step,
    run_length,
)
from grain_jax.benchmarking.forecast import Forecast, forecast
from grain_jax.benchmarking.topology import Topology
from grain_jax.config import TrainConfig
from grain_jax.parallel import sharding
from grain_jax.parallel.presets import choose_mesh, choose_sizes
from grain_jax.training.logits import logits_form

GIB = 2**30
ROOM = 0.1  # of the memory of a device, which a step should leave


@dataclass(frozen=True)
class Plan:
    """What was found of a step on a topology; `step` is None where the compiler refused it."""

    config: TrainConfig
    topology: Topology
    mesh: Mesh
    step: CompiledStep | None
    needed: int | None  # bytes that a refused step would take, where the compiler says so
    times: Forecast | None  # None without published rates, or without a step
    length: int | None  # steps of the run, where they are known

    @property
    def memory(self) -> int | None:
        """Bytes of a device."""
        return self.needed if self.step is None else self.step.memory

    @property
    def limit(self) -> float | None:
        """Bytes that a device has."""
        return None if self.topology.peak is None else self.topology.peak.memory

    @property
    def fits(self) -> bool | None:
        """None where nothing says how much memory there is."""
        if self.step is None:
            return False
        return None if self.limit is None else self.step.memory <= self.limit


def make_plan(
    config: TrainConfig, topology: Topology, *, num_images: int = 0, text_file: Path | None = None
) -> Plan:
    """Compiles the step; arguments as of `compile_step`.

    Attention of a step for GPUs is XLA's, as only an installed cuDNN compiles its own.

    Raises ValueError for a mesh or batch that does not fit the devices.
    """
    mesh = check_mesh(config, topology)
    try:
        step = compile_step(
            with_attention(config, topology),
            mesh,
            num_images=num_images,
            text_file=text_file,
            compiler_options=topology.compiler_options,
        )
    except OutOfMemoryError as error:
        return Plan(config, topology, mesh, None, error.needed, None, None)
    times = None
    if topology.peak is not None:
        times = forecast(
            step,
            config,
            num_devices=mesh.size,
            peak=topology.peak,
            tiled=logits_form(config, mesh).tiled,
            num_slices=topology.num_slices,
            num_shards=sharding.num_batch_shards(mesh),
        )
    length = config.steps or None  # also where the length of the warm-up is not known
    if found := run_length(config, num_images):
        length = found[0]
    return Plan(config, topology, mesh, step, None, times, length)


def with_attention(config: TrainConfig, topology: Topology) -> TrainConfig:
    """With the attention that can be compiled without a GPU; what a GPU has not stays."""
    if not topology.is_gpu or config.model.attention not in ("auto", "cudnn"):
        return config
    return replace(config, model=replace(config.model, attention="xla"))


def has_other_attention(plan: Plan) -> bool:
    """Whether a run may take attention by cuDNN, which is not compiled here."""
    model = plan.config.model
    mine = model.attention in ("auto", "cudnn")
    return plan.topology.is_gpu and mine and model.dtype != "float32"


def check_mesh(config: TrainConfig, topology: Topology) -> Mesh:
    """The mesh of the run; ValueError for a mesh or batch that does not fit the devices."""
    # By number, as host devices that stand for GPUs know nothing of nodes.
    mesh = choose_mesh(config, topology.devices, num_slices=topology.num_slices)
    sharding.check_batch(config, mesh.devices.shape)
    return mesh


def verdict(plan: Plan) -> str:
    """The first line: whether it fits, and what to change if not."""
    memory = "more" if plan.memory is None else f"{plan.memory / GIB:.3g} GiB"
    if plan.limit is None:
        return f"{memory} a device."
    has = f"{plan.limit / GIB:.4g} GiB"
    if not plan.fits:
        change = next(changes(plan), "a smaller batch_size, or more devices")
        return f"Does not fit: {memory} a device, which has {has}. Next to try: {change}."
    assert plan.memory is not None
    left = 1 - plan.memory / plan.limit
    if left < ROOM:
        change = next(changes(plan), "a smaller batch_size")
        return f"Fits barely: {memory} of {has} a device. For more room: {change}."
    return f"Fits: {memory} of {has} a device, {left:.0%} left."


def changes(plan: Plan) -> Iterator[str]:
    """What would make the step smaller: first what leaves its values as they are, cheapest first,
    then what does not.
    """
    config, sizes = plan.config, plan.mesh.shape
    if config.model.remat != "full":
        yield "--model.remat=full, which costs a third of the towers' products once more"
    if not config.model.scan_layers:
        yield "--model.scan_layers=true, with --model.remat=full"
    split = sizes["data"] * sizes["fsdp"]
    step, limit = plan.step, plan.limit
    large = step is None or limit is None or step.state > 0.1 * limit
    if sizes["fsdp"] == 1 and split > 1 and large and _can_be_split(plan):
        yield "--mesh.preset=fsdp, which splits parameters and optimizer"
    chunks = 2 * config.optim.grad_cache_chunks
    # Parts make temporaries smaller, and nothing else.
    useful = step is None or limit is None or step.arguments <= (1 - ROOM) * limit
    if useful and config.batch_size % (split * chunks) == 0:
        yield f"--optim.grad_cache_chunks={chunks}, which encodes the batch in parts, twice"
    if large and config.optim.moments_dtype == "float32":
        yield "--optim.moments_dtype=bfloat16, which halves the optimizer and rounds its moments"


def _can_be_split(plan: Plan) -> bool:
    config = replace(plan.config, mesh=replace(plan.config.mesh, preset="fsdp"))
    count = plan.topology.num_slices
    try:
        choose_sizes(config, num_slices=count, slice_size=plan.mesh.size // count)
    except ValueError:
        return False
    return True


def sweep(
    config: TrainConfig, topology: Topology, settings: Sequence[Candidate], *, num_images: int = 0
) -> Iterator[tuple[Candidate, Plan | None]]:
    """Compiles one after the other; None for what need not be compiled.

    That is what needs the memory of one before that did not fit (`cannot_fit`).
    """
    for setting in settings:  # before minutes are spent on the first
        check_mesh(setting.config(config), topology)
    refused: list[Candidate] = []
    for setting in settings:
        if cannot_fit(setting, refused):
            yield setting, None
            continue
        plan = make_plan(setting.config(config), topology, num_images=num_images)
        if plan.fits is False:
            refused.append(setting)
        yield setting, plan


def images_per_second(plan: Plan) -> float:
    """What a sweep ranks by: with the compiler's cycles where it has them, else the roofline, and
    the network after it. 0 where the step does not fit.
    """
    if plan.times is None or plan.fits is False:
        return 0.0
    seconds = plan.times.cycles_and_network
    if seconds is None:
        seconds = plan.times.one_after_the_other
    return plan.config.batch_size / seconds
