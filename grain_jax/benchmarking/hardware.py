"""Published peak rates of accelerators, by the name that JAX gives a device."""

from dataclasses import dataclass

TERA = 1e12
GIB = 2**30


_NVIDIA = "NVIDIA data sheet, SXM, without sparsity"
_CLOUD_TPU = "Cloud TPU documentation"


@dataclass(frozen=True)
class Peak:
    """Of one JAX device, dense, from the vendor's data sheet. 0 where it is not listed here."""

    bfloat16: float  # FLOP/s
    source: str
    # bytes that a program may use: of a TPU by its compiler, of a GPU the three quarters that JAX
    # takes without XLA_PYTHON_CLIENT_MEM_FRACTION
    memory: float = 0.0
    memory_rate: float = 0.0  # bytes/s
    # bytes/s in each direction to the other devices of a node or slice: on a TPU one axis of the
    # grid of chips, both ways round
    network_rate: float = 0.0
    # bytes/s in each direction to other nodes or slices: of a DGX node one adapter of 400 Gbit/s a
    # GPU, of a v5e pod its 6.4 Tbit/s over 256 chips
    between_rate: float = 0.0
    # Of a TPU core, cycles a second: its bfloat16 rate over what its matrix units do in a cycle, 4
    # of 128 x 128 products a core. Of v6e the documented two of 256 x 256 would need 3.5 GHz.
    clock: float = 0.0

    @property
    def is_tpu(self) -> bool:
        """Whether the device is one of Google's."""
        return self.source == _CLOUD_TPU


# The first key that the device's name contains counts, so longer names come first.
PEAKS: dict[str, Peak] = {
    "H200": Peak(989.4 * TERA, _NVIDIA, 0.75 * 141e9, 4.8e12, 450e9, 50e9),
    "H100 PCIe": Peak(756.0 * TERA, "NVIDIA data sheet, PCIe, without sparsity"),
    "H100 NVL": Peak(835.5 * TERA, "NVIDIA data sheet, NVL, without sparsity"),
    "H100": Peak(989.4 * TERA, _NVIDIA, 0.75 * 80e9, 3.35e12, 450e9, 50e9),
    "B200": Peak(2_250 * TERA, "NVIDIA data sheet of HGX B200, without sparsity"),
    "A100": Peak(312 * TERA, _NVIDIA),
    "L40S": Peak(362 * TERA, "NVIDIA data sheet, without sparsity"),
    "TPU v6 lite": Peak(918 * TERA, _CLOUD_TPU, 31.25 * GIB, 1.64e12, 180e9),
    "TPU v5 lite": Peak(
        197 * TERA, _CLOUD_TPU, 15.75 * GIB, 819e9, 90e9, 3.125e9, 197 * TERA / (4 * 2 * 128 * 128)
    ),
    "TPU v5": Peak(
        459 * TERA, _CLOUD_TPU, 95.74 * GIB, 2.765e12, 180e9, clock=459 * TERA / (8 * 2 * 128 * 128)
    ),
    "TPU v4": Peak(275 * TERA, _CLOUD_TPU),
}


def peak_of(device_kind: str) -> Peak | None:
    """The published peak of a device by `jax.Device.device_kind`; None for an unknown one."""
    for name, peak in PEAKS.items():
        if name.lower() in device_kind.lower():
            return peak
    return None
