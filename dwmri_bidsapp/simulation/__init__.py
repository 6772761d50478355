"""Simulated diffusion MRI with known truth: anatomies, protocols, signals, noise and whole datasets.

`anatomy` (brains) and `geometry` (random shapes) say what stands in each voxel, `microstructure` what water does there,
`signal` turns that into clean images, `motion` and `noise` spoil them, `dataset` writes BIDS.
"""

from .anatomy import Anatomy, brain_anatomy
from .dataset import write_bids_dataset
from .geometry import geometric_anatomy
from .microstructure import Microstructure, draw_microstructure
from .motion import move_volumes
from .noise import (
    NoiseKind,
    add_noise,
    b0_signal,
    draw_sigma_map,
    expected_magnitude,
    invert_expected_magnitude,
)
from .protocol import make_protocol
from .signal import Family, Phantom, clean_signal, simulate_phantom

__all__ = [
    "Anatomy",
    "Family",
    "Microstructure",
    "NoiseKind",
    "Phantom",
    "add_noise",
    "b0_signal",
    "brain_anatomy",
    "clean_signal",
    "draw_microstructure",
    "draw_sigma_map",
    "expected_magnitude",
    "geometric_anatomy",
    "invert_expected_magnitude",
    "make_protocol",
    "move_volumes",
    "simulate_phantom",
    "write_bids_dataset",
]
