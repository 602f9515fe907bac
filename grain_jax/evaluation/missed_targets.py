"""Rates that a calibration was fitted to and that images which it did not see contradict."""

from collections.abc import Mapping
from typing import Any

MORE_IMAGES = (
    "The interval is that of the images measured on alone: fit to more images, taken as those are "
    "that will be predicted on"
)


def missed_targets(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each target whose 95 % interval on held-out images does not contain it.

    `report` is that of `calibration_fit.fit`: its settings, `none_of_these`, and where images are
    labelled the metrics `after`.
    """
    settings, none = report["settings"], report["none_of_these"]
    by_outliers = settings["false_accept"] is not None and "false_accept" in none
    rate = "false_accept" if by_outliers else "false_reject"
    rates = {
        "false_accept": "outliers that are accepted",
        "false_reject": 'images that "none of these" is said of',
    }
    targets = [(rates[rate], rate, settings[rate], none[rate])]
    if "coverage" in report.get("after", {}):
        found = report["after"]["coverage"]
        targets.insert(0, ("sets that hold the label", "coverage", settings["coverage"], found))
    notes = []
    for what, option, target, found in targets:
        if found["low"] <= target <= found["high"]:
            continue
        above = target < found["low"]
        safe = above == (option == "coverage")
        worse = (
            "it errs on the safe side"
            if safe
            else "do not rely on the target for images like these"
        )
        notes.append(
            f"--{option} asked for {target:.1%} of {what}, and of the held-out images it is "
            f"{found['value']:.1%} (95 % interval {found['low']:.1%} to {found['high']:.1%}), "
            f"{'above' if above else 'below'} the target: {worse}. {MORE_IMAGES}."
        )
    return notes
