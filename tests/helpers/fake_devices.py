"""Devices as far as placing them in a mesh looks at them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FakeDevice:
    """As much of a device as placing it in a mesh looks at."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def gpus(num_slices, processes_of_slice, devices_of_process=1):
    """As Slurm starts them; a slice is a node, or an NVLink domain over several."""
    size = processes_of_slice * devices_of_process
    return [
        FakeDevice(i, i // devices_of_process, i // size, "gpu", "NVIDIA H100 80GB HBM3")
        for i in range(num_slices * size)
    ]
