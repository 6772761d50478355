"""What water does inside a tissue: the constants of the signal model, one set per anatomy.

Diffusivities are in mm²/s. The values of :class:`Microstructure` are those of the brain family;
:func:`draw_microstructure` draws others widely around them, so that weights do not learn one set. Models of this kind
are reviewed in Jelescu & Budde 2017, doi:10.3389/fphy.2017.00061.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WHITE_B0 = 1000.0
"""b=0 signal of white matter; the other tissues follow the contrast of T2."""


@dataclass(frozen=True, kw_only=True)
class Microstructure:
    """Constants of the signal model.

    Attributes
    ----------
    axonal_along, axonal_across
        Diffusivity of water in axons, which are not quite parallel, hence not quite sticks.
    around_along, around_across
        Diffusivity of the water around them.
    free, free_share
        Diffusivity of free water (CSF), and its share of the white matter.
    grey_fast, grey_slow
        Diffusivities of the two isotropic pools of grey matter.
    grey_along, grey_across
        Diffusivities of its anisotropic pool, along and across the cortex's radial direction.
    grey_shares
        Shares of the fast, slow and anisotropic pools, summing to 1.
    lesion_fibres, lesion_free
        Share of a lesion that still is white matter, and diffusivity of the rest.
    grey_b0, csf_b0, lesion_b0
        b=0 signals; that of white matter is :data:`WHITE_B0`.
    """

    axonal_along: float = 1.9e-3
    axonal_across: float = 0.2e-3
    around_along: float = 1.6e-3
    around_across: float = 0.8e-3
    free: float = 3.0e-3
    free_share: float = 0.04
    grey_fast: float = 1.1e-3
    grey_slow: float = 0.35e-3
    grey_along: float = 1.1e-3
    grey_across: float = 0.65e-3
    grey_shares: tuple[float, float, float] = (0.45, 0.25, 0.30)
    lesion_fibres: float = 0.3
    lesion_free: float = 1.4e-3
    grey_b0: float = 1.3 * WHITE_B0
    csf_b0: float = 3.2 * WHITE_B0
    lesion_b0: float = 1.8 * WHITE_B0


def draw_microstructure(rng: np.random.Generator) -> Microstructure:
    """Draw constants from wide ranges."""
    around_along = rng.uniform(1.2e-3, 2.2e-3)
    fast, slow, radial = rng.dirichlet([6.0, 3.0, 3.0])
    return Microstructure(
        axonal_along=rng.uniform(1.4e-3, 2.5e-3),
        axonal_across=rng.uniform(0.0, 0.35e-3),
        around_along=around_along,
        around_across=rng.uniform(0.3, 0.65) * around_along,
        free=rng.uniform(2.7e-3, 3.2e-3),
        free_share=rng.uniform(0.0, 0.12),
        grey_fast=rng.uniform(0.8e-3, 1.4e-3),
        grey_slow=rng.uniform(0.15e-3, 0.6e-3),
        grey_along=rng.uniform(0.9e-3, 1.6e-3),
        grey_across=rng.uniform(0.4e-3, 0.9e-3),
        grey_shares=(float(fast), float(slow), float(radial)),
        grey_b0=rng.uniform(0.95, 1.7) * WHITE_B0,
        csf_b0=rng.uniform(1.8, 5.0) * WHITE_B0,
    )
