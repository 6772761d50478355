"""What a run's numbers and warnings mean for its user, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .collect import RunRecord
from .glossary import split_name
from .render import number


@dataclass(frozen=True)
class Finding:
    """Something the user should know, and the way out."""

    text: str
    advice: str


_ADVICE = {
    "distinct directions": "compare colour FA before and after; prefer the acquired data if in doubt",
    "single b=0": "nothing now: it gains less than the other volumes; acquire several b=0 volumes if you can",
    "do not span a diffusion tensor": "check the b-vectors; do not use FA, MD or directions of this run",
    "one volume each": "expect less gain at these b-values than in a shell; look at their before and after",
    "not of length 1": "check how the .bvec file was made; some scanners scale b-vectors to encode b-values",
    "negative values": "nothing if the data were interpolated or bias-corrected before; else check the conversion",
    "empty volumes": "leave these volumes out of the dataset, with their b-values and b-vectors",
    "diverged": "run it again with a lower --learning-rate; the result shown uses the best weights found before",
    "hardly any noise": "denoise the data as acquired, before any other step",
    "mask": "look at the edge of the brain in the pictures; give a mask with --mask or --derivatives",
}
"""What to do about warnings, by words that they hold."""


def findings_of(record: RunRecord) -> list[Finding]:
    """Return the recorded warnings and what the measures say, each with a way out."""
    recorded = [Finding(warning, _advice(warning)) for warning in record.warnings]
    return [*recorded, *(found for rule in _RULES for found in rule(record))]


def _advice(warning: str) -> str:
    return next((advice for words, advice in _ADVICE.items() if words in warning), "")


def _residual_spread(record: RunRecord) -> list[Finding]:
    spread = _value(record.metrics, "residual_std")
    if spread is None:
        return []
    if spread > 1.05:
        return [
            Finding(
                f"More than noise was taken away: the residual's spread is {number(spread)} σ (good: 0.95 to 1.02).",
                "look for anatomy in the mean residual; if there is some, give a noise map with --noise-map, train "
                "longer with --max-steps, or check for motion between volumes",
            )
        ]
    if spread < 0.6:
        return [
            Finding(
                f"Little noise was taken away: the residual's spread is {number(spread)} σ (good: 0.95 to 1.02).",
                "check the noise map (too high?) and whether the data had been denoised or smoothed already",
            )
        ]
    return []


def _anatomy_in_residual(record: RunRecord) -> list[Finding]:
    correlation = _value(record.metrics, "residual_edge_correlation")
    if correlation is None or correlation <= 0.05:
        return []
    return [
        Finding(
            f"The residual follows anatomy: correlation {number(correlation)} with its edges (good: −0.02 to 0.02).",
            "look at the mean residual of each shell; motion between volumes is the usual cause: correct it in a "
            "first pass, or prefer the acquired data where borders matter",
        )
    ]


def _bias(record: RunRecord) -> list[Finding]:
    found = []
    for name, before in record.metrics.items():
        base, when = split_name(name)
        after = _value(record.metrics, f"{base}_after")
        if not (base.startswith("mean_signal_b") and when == "before" and after is not None and before):
            continue
        change = 100 * (after / before - 1)
        if abs(change) > 2:
            found.append(
                Finding(
                    f"The mean signal at b={base.removeprefix('mean_signal_b')} changed by {change:+.1f}%.",
                    "expected with --bias-correction rician; without it look at the mean residual of that shell",
                )
            )
    return found


def _training(record: RunRecord) -> list[Finding]:
    start, end = _value(record.info, "heldout_loss_start"), _value(record.info, "heldout_loss_end")
    if start is None or end is None or not record.info.get("steps"):
        return []
    if end >= start:
        return [
            Finding(
                "Training did not lower the error on held-out voxels: the initial weights were used (random ones "
                "leave the prediction from the other volumes as it was).",
                "nothing if it was close to 1 from the start; else try more --max-steps or another --learning-rate",
            )
        ]
    history = [
        row["heldout_loss"] for row in record.history() if row.get("heldout_loss") == row.get("heldout_loss")
    ]
    # a rate that decays to nothing always ends in a small fall, which more steps do not prolong
    falling = len(history) > 4 and history[-1] < min(history[:-2]) - 0.25 * (history[0] - history[-1])
    if falling and record.info.get("stop_reason") == "max-steps":
        return [
            Finding("The held-out error was still falling when training ended.", "give it more --max-steps")
        ]
    return []


def _blurring(record: RunRecord) -> list[Finding]:
    before, after = (_value(record.metrics, f"edge_width_{when}") for when in ("before", "after"))
    if before is None or after is None or after <= 1.1 * before:
        return []
    return [
        Finding(
            f"Edges became wider: {number(before)} → {number(after)} voxels (good: at most 5% wider).",
            "flicker before and after at high b-values; train longer with --max-steps",
        )
    ]


def _outlying_volumes(record: RunRecord) -> list[Finding]:
    count = _value(record.metrics, "outlier_volumes")
    if not count:
        return []
    volumes = "1 volume stands" if count == 1 else f"{number(count)} volumes stand"
    return [
        Finding(
            f"{volumes} out of their shell by mean signal, residual, or likeness to their neighbours.",
            "find them in the carpet of the signal (triangles); motion or dropout cannot be denoised: correct it "
            "later with a tool that replaces outliers, or leave these volumes out",
        )
    ]


def _motion(record: RunRecord) -> list[Finding]:
    mean, largest = (_value(record.metrics, name) for name in ("fd_mean", "fd_max"))
    if mean is None or largest is None or (mean <= 0.5 and largest <= 1):
        return []
    return [
        Finding(
            f"The head moved: by up to {number(largest)} mm from one volume to the next, {number(mean)} mm on average "
            "(framewise displacement, estimated; good: below 1 and 0.3).",
            "run head-motion correction after denoising (QSIPrep, FSL eddy); look for borders in the mean residual",
        )
    ]


def _value(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and value == value else None


_RULES: tuple[Callable[[RunRecord], list[Finding]], ...] = (
    _outlying_volumes, _motion, _residual_spread, _anatomy_in_residual, _bias, _blurring, _training,
)  # fmt: skip
