"""Names of tensors without what training frameworks put around a model.

`torch.compile` puts "_orig_mod." before every name, DataParallel and DistributedDataParallel
"module.", FSDP "_fsdp_wrapped_module.", activation checkpointing "_checkpoint_wrapped_module.",
Lightning's Fabric "_forward_module.", and a LightningModule the name of its own attribute,
mostly "model.". They nest in any order; all but "module." and "model." also occur inside of a name.
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
    """Each name without its wrappers: {as given: as the bare module has it}.

    "model." goes only where every name starts with it. Raises ValueError, with `where` they are
    from, for two names that are then the same.
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
