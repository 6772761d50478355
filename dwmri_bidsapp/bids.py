"""What there is to process: one :class:`DwiRun` for each diffusion-weighted magnitude image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Config
from .errors import DwmriError

PREFIXES = {
    "subject": "sub", "session": "ses", "acquisition": "acq", "direction": "dir", "run": "run", "part": "part",
}  # fmt: skip
"""Entities that a run's label shows, in the order of BIDS, with their prefixes."""


@dataclass(frozen=True, kw_only=True)
class DwiRun:
    """One DWI image with everything that belongs to it.

    Parameters
    ----------
    dwi, bval, bvec
        The image and its gradient table (inherited files included).
    entities
        BIDS entities of the image by long name, with labels as the file has them: ``{"subject": "01"}``.
    metadata
        The JSON sidecars, merged by inheritance.
    mask
        Brain mask from a derivatives folder or ``--mask``.
    noise_map
        Noise standard deviation per voxel, likewise.
    """

    dwi: Path
    bval: Path
    bvec: Path
    entities: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    noise_map: Path | None = None

    @property
    def subject(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["subject"]

    @property
    def label(self) -> str:
        """File name without suffix, such as ``sub-01_ses-test_run-1``."""
        return self.dwi.name.partition("_dwi.")[0]


def find_runs(config: Config) -> tuple[list[DwiRun], list[DwmriError]]:
    """Find the runs that the options select, and what is wrong with the others."""
    raise NotImplementedError(config)
