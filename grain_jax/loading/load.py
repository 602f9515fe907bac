"""Load a trained model of any supported format as a `ModelBundle`:

- a run folder of `python -m grain_jax.train`, the only format with several steps, and the only one
  that is read from a bucket ("gs://bucket/run");
- a folder of `python -m grain_jax.export --to=huggingface`;
- a checkpoint file of the official code (.pth), or of `--to=official`;
- a folder of a `CLIPModel` or `SiglipModel` of Hugging Face, or of a model of open_clip;
- a state dict or training checkpoint of open_clip, with its `open_clip_config.json` beside it;
- the name of one of these on the Hugging Face hub, "openai/clip-vit-base-patch16", where there is
  no folder "openai"; "openai/clip-vit-base-patch16@REVISION" for a commit, branch or tag.
"""

import dataclasses
import re
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grain_jax import buckets
from grain_jax.loading.formats import FORMATS, RUN
from grain_jax.loading.hub import download
from grain_jax.models.bundle import ModelBundle
from grain_jax.paths import AnyPath, run_path

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
OUR_FOLDERS = ("runs", "exports")  # a missing "runs/demo" is not looked for on the hub


def read_model(
    path: str | AnyPath, *, step: int | None = None, best: bool = False, mesh: Mesh | None = None
) -> ModelBundle:
    """The model at `path`, a path, an address in a bucket or a name on the Hugging Face hub.

    Args:
        step: of a run folder, the step of the checkpoint (default: the newest).
        best: of a run folder, load the checkpoint with the best metric.
        mesh: shard the parameters of a run over it; those of other formats are replicated.

    Raises ValueError where there is no model, its format is not supported, or it is damaged, and
    OSError where a bucket cannot be reached.
    """
    path = run_path(path)
    name = str(path)
    if buckets.in_bucket(path):
        buckets.check(path)
    if RUN.recognises(path):
        return RUN.read(path, step=step, best=best, mesh=mesh)
    if step is not None or best:
        raise ValueError(
            f"{name} is not a run folder, so there is no step to choose; leave out step and best."
        )
    if buckets.in_bucket(path):
        raise ValueError(
            f"There is no run folder with a complete checkpoint in {name}; other models are read "
            "from this machine: copy them here first."
        )
    loaded = _read_other(path, name)
    if mesh is None:
        return loaded
    everywhere = NamedSharding(mesh, PartitionSpec())
    return dataclasses.replace(loaded, params=jax.device_put(loaded.params, everywhere))


def _read_other(path: Path, name: str) -> ModelBundle:
    on_hub = HUB_NAME.fullmatch(name) and path.parts[0] not in OUR_FOLDERS
    if on_hub and not path.exists() and not path.parent.exists():
        loaded = _read_other(download(name), name)
        loaded.config.name = name
        return loaded
    for each in FORMATS.values():
        if each.recognises(path):
            return each.read(path)
    if path.is_file():
        raise ValueError(
            f"{name} is a file of weights alone; give its folder, {str(path.parent)!r}, which "
            "has the configuration."
        )
    what = "There is no supported model in" if path.exists() else "There is no"
    *titles, last = (each.title for each in FORMATS.values())
    raise ValueError(f"{what} {name}; expected {', '.join(titles)} or {last}.{_hint(path)}")


def _hint(path: Path) -> str:
    """How to join weights that a training framework wrote in several files; "" for none."""
    if (path / "zero_to_fp32.py").is_file():
        return (
            " It is a checkpoint of DeepSpeed; zero_to_fp32.py, beside the weights, joins them into"
            " one file."
        )
    if (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        return (
            " It is a distributed checkpoint of torch: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE joins it."
        )
    return ""
