"""Nipype workflows: one per run, under one for the whole call."""

from __future__ import annotations

from .base import init_dwmri_wf, init_single_run_wf
from .execution import RunOutcome, run_participant_level

__all__ = ["RunOutcome", "init_dwmri_wf", "init_single_run_wf", "run_participant_level"]
