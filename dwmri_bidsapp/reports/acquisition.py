"""What the scanner's metadata and the gradient table tell about a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nb
import numpy as np

from ..errors import DwmriError
from ..figures.charts import shell_colours
from ..figures.frames import fsl_to_world
from ..images import IMAGE_ERRORS
from .collect import RunRecord
from .judge import Finding
from .render import number

_UNREADABLE: tuple[type[Exception], ...] = (DwmriError, IndexError, *IMAGE_ERRORS)


@dataclass(frozen=True)
class Field:
    """A field of the sidecar.

    Attributes
    ----------
    names
        Keys that say it, the first one preferred.
    unit
        Unit in BIDS.
    needed_for
        What cannot be done without it; empty when it is only good to know.
    odd
        Tells whether a value cannot be right.
    """

    names: tuple[str, ...]
    unit: str = ""
    needed_for: str = ""
    odd: Callable[[Any], bool] = lambda _: False


def _outside(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: not (isinstance(value, int | float) and low < value <= high)


FIELDS: dict[str, Field] = {
    "Scanner": Field(("Manufacturer",)),
    "Model": Field(("ManufacturersModelName",)),
    "Field strength": Field(("MagneticFieldStrength",), "T", odd=_outside(0.01, 25)),
    "Repetition time": Field(("RepetitionTime",), "s", odd=_outside(0.1, 60)),
    "Echo time": Field(("EchoTime",), "s", odd=_outside(0.001, 0.5)),
    "Phase encoding": Field(
        ("PhaseEncodingDirection", "PhaseEncodingAxis"), needed_for="distortion correction",
        odd=lambda value: str(value) not in {f"{axis}{sign}" for axis in "ijk" for sign in ("", "-")},
    ),
    "Readout": Field(
        ("TotalReadoutTime", "EffectiveEchoSpacing", "EstimatedTotalReadoutTime"), "s",
        needed_for="distortion correction", odd=_outside(0, 1),
    ),
    "Partial Fourier": Field(
        ("PartialFourier",), needed_for="Gibbs ringing removal (which kind), and to judge whether noise is white",
        odd=_outside(0.5, 1),
    ),
    "In-plane acceleration": Field(("ParallelReductionFactorInPlane",), odd=_outside(0.99, 16)),
    "Multiband factor": Field(("MultibandAccelerationFactor",), odd=_outside(0.99, 16)),
    "Slice timing": Field(("SliceTiming",), "s", needed_for="slice-to-volume motion correction"),
}  # fmt: skip
"""What a diffusion pipeline asks a sidecar for."""


def metadata_rows(record: RunRecord) -> list[tuple[str, str]]:
    """Return what the sidecar says about the acquisition, for readers; what is missing is said."""
    metadata = record.metadata()
    rows = []
    for label, field in FIELDS.items():
        name, value = _look_up(metadata, field)
        if value is None:
            if field.needed_for:
                rows.append((label, f"missing ({field.names[0]}): needed for {field.needed_for}"))
        elif isinstance(value, list):
            rows.append((label, f"{name} of {len(value)} slices"))
        else:
            shown = number(value) if isinstance(value, int | float) else str(value)
            rows.append(
                (label, f"{shown} {field.unit}".strip() + (f" ({name})" if name != field.names[0] else ""))
            )
    return rows


def metadata_findings(record: RunRecord) -> list[Finding]:
    """Return what is missing or cannot be right in the sidecar, with a way out."""
    metadata = record.metadata()
    if not metadata:
        return []
    found = []
    looked_up = {label: _look_up(metadata, field) for label, field in FIELDS.items()}
    missing = [
        FIELDS[label].names[0]
        for label, (_, value) in looked_up.items()
        if value is None and FIELDS[label].needed_for == "distortion correction"
    ]
    if missing:
        found.append(
            Finding(
                f"Missing metadata: {', '.join(missing)}.",
                "denoising does not need it, distortion correction does: add it to the sidecar of the dataset",
            )
        )
    for label, (name, value) in looked_up.items():
        if value is not None and FIELDS[label].odd(value) and not isinstance(value, list):
            unit = f", in {FIELDS[label].unit}" if FIELDS[label].unit else ""
            found.append(
                Finding(f"Odd metadata: {name} is {value}.", f"check the sidecar and its units (BIDS{unit})")
            )
    return found


def _look_up(metadata: Mapping[str, Any], field: Field) -> tuple[str, Any]:
    return next(
        ((name, metadata[name]) for name in field.names if metadata.get(name) is not None), ("", None)
    )


def sphere_data(record: RunRecord) -> dict[str, Any] | None:
    """Return the directions of a run in world axes, by shell, for a chart that can be turned.

    Returns
    -------
    dict or None
        ``shells``: name, colour, and (n, 3) directions (right, anterior, superior), as long as their share of
        the highest b-value's square root, so that shells lie inside each other. None where files are missing.
    """
    try:
        image = nb.load(record.metrics_file.with_name(f"{record.label}_desc-{record.method}_dwi.nii.gz"))
        gradients = record.gradients(image.shape[3])
    except _UNREADABLE:
        return None  # a chart more or less: the pictures tell the same
    world_v3 = fsl_to_world(gradients.bvecs, image.affine)
    top = float(gradients.shell_bvals.max()) or 1.0
    colours = shell_colours(gradients.shell_bvals)
    shells = []
    for shell in np.unique(gradients.shell[gradients.dwi]):
        b = float(gradients.shell_bvals[shell])
        members = np.flatnonzero(gradients.shell == shell)
        points_n3 = world_v3[members] * np.sqrt(b / top)
        shells.append(
            {"name": f"b={b:.0f} ({len(members)})", "colour": colours[shell], "volumes": members.tolist(),
             "points": points_n3.round(4).tolist()}
        )  # fmt: skip
    return {"shells": shells} if shells else None
