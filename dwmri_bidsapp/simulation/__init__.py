"""Simulated diffusion MRI with known truth: anatomies, protocols, signals, noise and whole datasets.

`anatomy` says what stands in each voxel (add another geometry there: anything that returns an
:class:`Anatomy`), `signal` turns that into clean images, `noise` spoils them, `dataset` writes BIDS.
"""

from .anatomy import Anatomy, brain_anatomy
from .dataset import write_bids_dataset
from .noise import NoiseKind, add_noise, b0_signal, draw_sigma_map
from .protocol import make_protocol
from .signal import Phantom, clean_signal, simulate_phantom

__all__ = [
    "Anatomy",
    "NoiseKind",
    "Phantom",
    "add_noise",
    "b0_signal",
    "brain_anatomy",
    "clean_signal",
    "draw_sigma_map",
    "make_protocol",
    "simulate_phantom",
    "write_bids_dataset",
]
