import pytest

from grain_jax.benchmarking.hardware import peak_of


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("TPU v5 lite", 197.0),
        ("TPU v5p", 459.0),
        ("TPU v6 lite", 918.0),
        ("TPU v4", 275.0),
    ],
)
def test_peak_by_the_name_of_a_device(kind, tera):
    peak = peak_of(kind)
    assert peak is not None
    assert peak.bfloat16 == tera * 1e12


def test_no_peak_is_made_up():
    assert peak_of("cpu") is None
