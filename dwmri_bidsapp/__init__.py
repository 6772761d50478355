"""A BIDS App that removes noise from diffusion MRI with a network trained on each run."""

from __future__ import annotations

__version__ = "0.1.0"
