"""Rates of an evaluation, of seconds that are given."""

from grain_jax.benchmarking import report
from grain_jax.benchmarking.evaluation import EvaluationTiming


def test_rates_are_of_the_median_without_the_first_time():
    timing = EvaluationTiming(
        images=120,
        classes=3,
        texts=60,
        image_seconds=(50.0, 1.0, 2.0, 9.0),
        text_seconds=(40.0, 3.0, 1.0, 8.0),
        classify_seconds=(30.0, 1.0, 4.0, 9.0),
        batch_size=8,
        num_devices=2,
        device_kind="TPU v5 lite",
        image_flops=197e9,
        peak_bytes=None,
    )
    assert timing.images_per_second == 120 / 2.0
    assert timing.texts_per_second == 60 / 3.0
    assert timing.mfu == 197e9 * 60 / (2 * 197e12)
    rows = report.evaluation_rows(timing)
    assert rows["images/s"] == "60 decoded and encoded (30 a device); median of 3 times"
    assert "median of 3 times" in rows["texts/s"]
    assert "tokens kept from the first time" in rows["texts/s"]
    assert rows["classes and scores"].startswith("4.000 s")
