"""Simulated diffusion MRI with known truth: anatomies, protocols, signals, noise and whole datasets.

`anatomy` (brains) and `geometry` (random shapes) say what stands in each voxel, `microstructure` what water does there,
`signal` turns that into clean images, `noise` spoils them, `dataset` writes BIDS.
"""

from .anatomy import Anatomy, brain_anatomy
from .dataset import write_bids_dataset
from .geometry import geometric_anatomy
from .microstructure import Microstructure, draw_microstructure
from .noise import NoiseKind, add_noise, b0_signal, draw_sigma_map
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
    "geometric_anatomy",
    "make_protocol",
    "simulate_phantom",
    "write_bids_dataset",
]
