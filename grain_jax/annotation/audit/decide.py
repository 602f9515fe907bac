"""What is done about faults: dropped, kept, or sent back to `describe`, where the better is kept.

A decision is in a row of the stage `audit`, which names the rows that it is about. Nothing else is
changed, so that `keep` brings back all that was dropped, and the newer of two descriptions.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from statistics import fmean

from grain_jax.annotation.audit.counts import TextCounts
from grain_jax.annotation.audit.faults import AuditedImage, Finding, Limits, find_faults
from grain_jax.annotation.audit.look import FileHash, audited
from grain_jax.annotation.queries import distinct_texts
from grain_jax.data.annotation_files import Annotations
from grain_jax.data.annotation_merge import JUDGED, Decision, decision_values, decisions_of
from grain_jax.data.annotation_rows import Provenance, Row, texts_hash
from grain_jax.data.image_files import SkippedSample

VERDICTS = ("kept_earlier", "kept_newer")
Findings = Mapping[str, Sequence[Finding]]
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Request:
    """What to do about which faults; decisions on the others stay."""

    drop: frozenset[str] = frozenset()
    retry: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    max_retries: int = 1  # of an image

    def __post_init__(self) -> None:
        pairs = ((self.drop, self.retry), (self.drop, self.keep), (self.retry, self.keep))
        for first, second in pairs:
            if both := sorted(first & second):
                raise ValueError(
                    f"{both[0]} is in two of --drop, --retry and --keep; give it in one of them."
                )

    @property
    def faults(self) -> frozenset[str]:
        """The faults that are decided on."""
        return self.drop | self.retry | self.keep


@dataclass(frozen=True)
class Decided:
    """What becomes of an image."""

    findings: Findings  # of the rows that count after it
    decisions: Sequence[Decision]
    row: Row | None = None  # to be written; None where nothing changes
    waits: bool = False  # it was described again, and is not grounded yet


class Decider:
    """Decides on one image after the other."""

    def __init__(
        self, annotations: Annotations, counts: TextCounts, file_hash: FileHash, request: Request
    ) -> None:
        self._annotations, self._counts, self._file_hash = annotations, counts, file_hash
        self._request = request

    def decide(self, index: int) -> Decided:
        """Raises ValueError where a file that holds rows of the image is damaged."""
        image = self._annotations.images[index]
        seen = self._audited(image, self._annotations.rows(index))
        findings = find_faults(seen, self._request.limits)
        before = self._annotations.decided_row("audit", index)
        old = [] if before is None else decisions_of(before)
        if not self._request.faults:
            current = before is not None and self._annotations.is_current(before, index)
            return Decided(findings, old if current else ())
        if before is None:
            return self._decided(index, findings, _Before())
        latest = self._annotations.latest(index)
        if before.outputs["judged_describe"] == latest["describe"]:
            current = self._annotations.is_current(before, index)
            found = [each for each in old if current or each.action != "drop"]
            return self._decided(index, findings, _before(before, found, latest))
        retried = {each.fault for each in old if each.action == "retry"} - self._request.keep
        tries = before.outputs["tries"] or 0
        if not retried:
            return self._decided(index, findings, _Before(before, tries=tries))
        earlier = self._earlier(before)
        if not self._is_grounded(before, earlier, index):
            return Decided(findings, old, waits=True)
        judged = self._judge(index, before, earlier, retried)
        if judged.kept:
            rows = {**self._annotations.rows(index), **earlier}
            findings = find_faults(self._audited(image, rows), self._request.limits)
        return self._decided(index, findings, judged)

    def _decided(self, index: int, findings: Findings, before: "_Before") -> Decided:
        """The decisions that stay and those that are new, as a row if they differ from before."""
        request = self._request
        decisions = [
            each
            for each in before.decisions
            if each.fault not in request.faults
            or (each.action in VERDICTS and each.fault not in request.keep)
        ]
        for fault in sorted(request.drop & findings.keys()):
            decisions += [
                Decision(fault, "drop", each.part, each.text, each.box_xyxy)
                for each in findings[fault]
            ]
        if before.tries < request.max_retries:
            for fault in sorted(request.retry & findings.keys()):
                decisions.append(Decision(fault, "retry"))
        decisions = sorted(dict.fromkeys(decisions), key=_order)  # the same however it came about
        latest = self._annotations.latest(index)
        kept = before.kept if any(each.action == "kept_earlier" for each in decisions) else {}
        outputs = {
            "decisions": [decision_values(each) for each in decisions],
            **{f"judged_{stage}": latest[stage] for stage in JUDGED},
            **{f"kept_{stage}": kept.get(stage) for stage in JUDGED},
            "tries": before.tries if decisions else 0,
        }
        if _says_the_same(before.row, outputs):
            return Decided(findings, decisions)
        origin = Provenance("grain_jax audit")
        return Decided(
            findings, decisions, Row(self._annotations.images[index], None, origin, outputs)
        )

    def _audited(self, image: str, rows: Rows) -> AuditedImage:
        return audited(image, rows, self._counts, self._file_hash)

    def _earlier(self, before: Row) -> dict[str, Row]:
        """The rows that counted when an image was sent back."""
        return {
            stage: self._annotations.row_at(stage, place)
            for stage, place in _places(before).items()
            if place is not None
        }

    def _is_grounded(self, before: Row, earlier: Rows, index: int) -> bool:
        """Whether what was described again was looked for, if that was done before."""
        latest = self._annotations.latest(index)["ground"]
        if latest is None or latest != before.outputs["judged_ground"]:
            return True
        looked_for = self._annotations.row_at("ground", latest).input_hash
        newer = self._annotations.rows(index)["describe"]
        return looked_for in _inputs(newer) or looked_for not in _inputs(earlier["describe"])

    def _judge(self, index: int, before: Row, earlier: Rows, retried: set[str]) -> "_Before":
        """Which of two descriptions is the better: the earlier one unless the newer one is."""
        image = self._annotations.images[index]
        newer = self._annotations.rows(index)
        first, second = (
            self._badness(self._audited(image, rows), retried) for rows in (earlier, newer)
        )
        action = "kept_newer" if second < first else "kept_earlier"
        return _Before(
            before,
            [Decision(fault, action) for fault in sorted(retried)],
            _places(before) if action == "kept_earlier" else {},
            (before.outputs["tries"] or 0) + 1,
        )

    def _badness(self, image: AuditedImage, retried: set[str]) -> tuple[int, int, float]:
        findings = find_faults(image, self._request.limits)
        num_retried = sum(len(found) for fault, found in findings.items() if fault in retried)
        num_all = sum(map(len, findings.values()))
        return num_retried, num_all, -fmean(image.best_scores.values() or (0.0,))


@dataclass(frozen=True)
class _Before:
    """What is carried over from an earlier row of `audit`."""

    row: Row | None = None
    decisions: Sequence[Decision] = ()
    kept: Mapping[str, str | None] = field(default_factory=dict)
    tries: int = 0


def _before(row: Row, decisions: Sequence[Decision], latest: Mapping[str, str | None]) -> _Before:
    """Of a row about the description that counts; a kept box counts until there is a newer one."""
    kept = {
        stage: row.outputs[f"kept_{stage}"]
        for stage in JUDGED
        if row.outputs[f"judged_{stage}"] == latest[stage]
    }
    return _Before(row, decisions, kept, row.outputs["tries"] or 0)


def _places(before: Row) -> dict[str, str | None]:
    """The names of the rows that counted for a row of `audit`."""
    return {
        stage: before.outputs[f"kept_{stage}"] or before.outputs[f"judged_{stage}"]
        for stage in JUDGED
    }


def _inputs(described: Row) -> set[str]:
    """`Row.input_hash` of what `ground` may have looked for, given a row of `describe`."""
    found = {texts_hash(described.outputs.get("captions") or ())}
    with contextlib.suppress(SkippedSample):
        texts = distinct_texts(described.outputs.get("descriptions") or (), "no description")
        found.add(texts_hash(texts))
    return found


def _order(decision: Decision) -> tuple[object, ...]:
    return (*astuple(decision)[:-1], decision.box_xyxy or ())


def _says_the_same(row: Row | None, outputs: Mapping[str, object]) -> bool:
    if row is None:
        return not outputs["decisions"]
    return all(row.outputs[name] == value for name, value in outputs.items())
