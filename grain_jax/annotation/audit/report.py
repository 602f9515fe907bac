"""Audit a folder of annotations: find its faults, decide on them, and report both."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grain_jax.annotation.audit.decide import Decided, Decider, Request
from grain_jax.annotation.audit.faults import FAULTS, Finding
from grain_jax.annotation.audit.look import count_texts, hash_of_files
from grain_jax.annotation.writer import AnnotationWriter
from grain_jax.data.annotation_files import read_annotations


@dataclass
class FaultReport:
    """How often a fault was found, and what is decided about it."""

    images: int = 0
    findings: int = 0
    examples: list[tuple[str, Finding]] = field(default_factory=list)  # (image, finding)
    actions: Counter[str] = field(default_factory=Counter)  # images, by `ACTIONS`

    def add(self, image: str, findings: list[Finding], limit: int) -> None:
        """Counts the findings of an image; the heaviest of different texts are examples."""
        self.images += 1
        self.findings += len(findings)
        for finding in findings:
            key = finding.text or image
            if len(self.examples) == limit and finding.weight <= self.examples[-1][1].weight:
                continue
            if any((each.text or shown) == key for shown, each in self.examples):
                continue
            self.examples.append((image, finding))
            self.examples.sort(key=lambda example: -example[1].weight)
            del self.examples[limit:]


@dataclass
class AuditReport:
    """What was found in a folder of annotations."""

    images: int
    request: Request
    looked_at_files: bool
    audited: int = 0  # images so far
    faults: dict[str, FaultReport] = field(
        default_factory=lambda: {name: FaultReport() for name in FAULTS}
    )
    with_faults: int = 0  # images
    decided: int = 0  # images whose decisions changed
    waiting: int = 0  # images that were described again, and are not grounded yet
    outdated: int = 0  # images with decisions about rows that no longer count

    def add(self, image: str, decided: Decided, max_examples: int) -> None:
        """Counts an image."""
        self.audited += 1
        self.with_faults += bool(decided.findings)
        self.decided += decided.row is not None
        self.waiting += decided.waits
        for name, findings in decided.findings.items():
            self.faults[name].add(image, list(findings), max_examples)
        for name, action in {(each.fault, each.action) for each in decided.decisions}:
            if name in self.faults:
                self.faults[name].actions[action] += 1

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "images": self.images,
            "images_with_faults": self.with_faults,
            "limits": asdict(self.request.limits),
            "faults": {
                name: {
                    "title": FAULTS[name].title,
                    "looked_for": self.looks_for(name),
                    "images": report.images,
                    "findings": report.findings,
                    "decided": dict(sorted(report.actions.items())),
                    "examples": [
                        {"image": image, **asdict(finding)} for image, finding in report.examples
                    ],
                }
                for name, report in self.faults.items()
            },
            "images_decided_now": self.decided,
            "images_waiting_for_ground": self.waiting,
            "images_with_outdated_decisions": self.outdated,
        }

    def looks_for(self, fault: str) -> bool:
        """Whether a fault was looked for."""
        return self.looked_at_files or not FAULTS[fault].needs_images


def audit(
    folder: Path,
    request: Request,
    *,
    images: Path | None = None,
    max_examples: int = 5,
    progress: Callable[[AuditReport], None] = lambda report: None,
    note: Callable[[str], None] = lambda text: None,
) -> AuditReport:
    """Finds the faults of a folder, and writes a row for each image whose decisions change.

    Args:
        images: folder of the images, for faults that need their files.
        progress: called after each image with what was found so far.
        note: called with a text where nothing stops another process that writes.

    Raises ValueError for a folder without annotations or a damaged one, or where another process
    decides, OSError where the disk refuses to be written to, ImportError without pyarrow.
    """
    for name in sorted(request.drop | request.retry):
        if FAULTS[name].needs_images and images is None:
            raise ValueError(f"{name} is found by the files of the images; give --images=DIR too.")
    read_annotations(folder)  # before anything is written
    with contextlib.ExitStack() as stack:
        writer = None
        if request.faults:
            writer = stack.enter_context(AnnotationWriter(folder, "audit", note=note))
        annotations = read_annotations(folder)
        decider = Decider(annotations, count_texts(annotations), hash_of_files(images), request)
        report = AuditReport(len(annotations), request, images is not None)
        for index, image in enumerate(annotations.images):
            decided = decider.decide(index)
            if writer is not None and decided.row is not None:
                writer.append(decided.row)
            report.add(image, decided, max_examples)
            progress(report)
    report.outdated = read_annotations(folder).num_outdated()
    return report
