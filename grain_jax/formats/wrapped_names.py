"""Remove the wrappers of training frameworks from names of tensors.

`torch.compile` puts "_orig_mod." before every name, DataParallel and DistributedDataParallel
"module.", FSDP "_fsdp_wrapped_module.", activation checkpointing "_checkpoint_wrapped_module.",
Lightning's Fabric "_forward_module.", and a LightningModule the name of its own attribute,
mostly "model.". They nest in any order; all but "module." and "model." also occur within a name.
"""

from collections.abc import Iterable

ANYWHERE = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
FIRST = "module"
ATTRIBUTE = "model."  # of a LightningModule


def unwrapped_names(names: Iterable[str], where: object) -> dict[str, str]:
    """{name: name without wrappers}.

    "model." is removed only where every name starts with it. Raises ValueError, which names `where`
    they are from, where two names become equal.
    """
    bare = {name: _unwrapped(name) for name in names}
    if bare and all(name.startswith(ATTRIBUTE) for name in bare.values()):
        bare = {given: _unwrapped(name.removeprefix(ATTRIBUTE)) for given, name in bare.items()}
    first: dict[str, str] = {}
    for given, name in bare.items():
        if (other := first.setdefault(name, given)) != given:
            raise ValueError(
                f"{where} has both {other!r} and {given!r}, which are the same tensor, {name!r}, "
                "of a wrapped model; keep one of them."
            )
    return bare


def _unwrapped(name: str) -> str:
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while len(parts) > 1 and parts[0] == FIRST:
        parts = parts[1:]
    return ".".join(parts)
