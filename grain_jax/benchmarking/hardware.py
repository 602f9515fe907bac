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
    # Of a TPU, its matrix units of 128 x 128 bfloat16 products a cycle; one of 256 x 256, of which
    # v6e has four, counts four times. By the compiler's cycles a large product keeps 87 to 97 % of
    # them busy, so the two of v6e that some editions of its documentation name would not do.
    units: int = 0

    @property
    def clock(self) -> float:
        """Cycles a second of a TPU, derived: the bfloat16 rate over what is computed in a cycle.

        0 where the units are not listed.
        """
        return self.bfloat16 / (self.units * 2 * 128 * 128) if self.units else 0.0

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
    "TPU v6 lite": Peak(918 * TERA, _CLOUD_TPU, 31.25 * GIB, 1.64e12, 180e9, units=16),
    "TPU v5 lite": Peak(197 * TERA, _CLOUD_TPU, 15.75 * GIB, 819e9, 90e9, 3.125e9, units=4),
    "TPU v5": Peak(459 * TERA, _CLOUD_TPU, 95.74 * GIB, 2.765e12, 180e9, units=8),
    # Its links: 1.1 PB/s of all-reduce over 4,096 chips of six links.
    "TPU v4": Peak(275 * TERA, _CLOUD_TPU, 30.75 * GIB, 1.2e12, 90e9, units=8),
}


def peak_of(device_kind: str) -> Peak | None:
    """The published peak of a device by `jax.Device.device_kind`; None for an unknown one."""
    for name, peak in PEAKS.items():
        if name.lower() in device_kind.lower():
            return peak
    return None
