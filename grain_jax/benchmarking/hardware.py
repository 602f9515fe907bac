"""Published peak rates of accelerators, by the name that JAX gives a device."""

from dataclasses import dataclass

TERA = 1e12


@dataclass(frozen=True)
class Peak:
    """Of one JAX device, dense, from the vendor's data sheet."""

    bfloat16: float  # FLOP/s
    source: str


_NVIDIA = "NVIDIA data sheet, SXM, without sparsity"
_CLOUD_TPU = "Cloud TPU documentation"

# The first key that the device's name contains counts, so longer names come first.
PEAKS: dict[str, Peak] = {
    "H200": Peak(989.4 * TERA, _NVIDIA),
    "H100 PCIe": Peak(756.0 * TERA, "NVIDIA data sheet, PCIe, without sparsity"),
    "H100 NVL": Peak(835.5 * TERA, "NVIDIA data sheet, NVL, without sparsity"),
    "H100": Peak(989.4 * TERA, _NVIDIA),
    "B200": Peak(2_250 * TERA, "NVIDIA data sheet of HGX B200, without sparsity"),
    "A100": Peak(312 * TERA, _NVIDIA),
    "L40S": Peak(362 * TERA, "NVIDIA data sheet, without sparsity"),
    "TPU v6 lite": Peak(918 * TERA, _CLOUD_TPU),
    "TPU v5 lite": Peak(197 * TERA, _CLOUD_TPU),
    "TPU v5": Peak(459 * TERA, _CLOUD_TPU),
    "TPU v4": Peak(275 * TERA, _CLOUD_TPU),
}


def peak_of(device_kind: str) -> Peak | None:
    """The published peak of a device by `jax.Device.device_kind`; None for an unknown one."""
    for name, peak in PEAKS.items():
        if name.lower() in device_kind.lower():
            return peak
    return None
