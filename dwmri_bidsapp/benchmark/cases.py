"""The runs that methods are measured on."""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..gradients import Gradients, load_gradients
from ..preparation import open_series, prepare_run, read_series
from ..simulation import (
    Family,
    NoiseKind,
    Phantom,
    add_noise,
    b0_signal,
    draw_sigma_map,
    expected_magnitude,
    invert_expected_magnitude,
    make_protocol,
    simulate_phantom,
)

Array = NDArray[np.float32]
Masks = dict[str, NDArray[np.bool_]]
Noise = Literal["rician", "varying", "chi", "zero-filled"]

PROTOCOLS: dict[str, tuple[int, dict[float, int]]] = {
    "few": (1, {1000.0: 13}),
    "b1000": (1, {1000.0: 32}),
    "b2500": (6, {2500.0: 60}),
    "shells": (6, {1000.0: 20, 2000.0: 30, 3000.0: 40}),
}
"""Number of b=0 volumes, and of directions for each b-value."""

NOISES: tuple[Noise, ...] = get_args(Noise)
_SPREADS: dict[Noise, float] = {"rician": 0.0, "varying": 1.0, "chi": 0.5, "zero-filled": 0.5}
_SMALL_SHAPE = (36, 44, 24)
_MOST_TISSUE = 0.5
_FEWEST_DIRECTIONS = 6


@dataclass(frozen=True)
class Case:
    """One run: a simulated one, or an acquired one that noise is added to.

    Attributes
    ----------
    protocol
        Name in :data:`PROTOCOLS`, or numbers as for :func:`parse_protocol`.
    snr
        b=0 SNR; of an acquired run that of the median voxel of the brain.
    noise
        ``"rician"`` (the same everywhere), ``"varying"`` (Rician, uneven by its mean), ``"chi"`` (4 coils) or
        ``"zero-filled"`` (correlated).
    seed
        Of the anatomy, and, with everything else here, of the noise.
    family
        ``"brain"``, ``"geometric"`` or ``"acquired"``.
    shape
        Voxels along each axis; None for the whole brain.
    voxel_size
        Edge of the voxels in mm, of a cube of the same volume.
    motion
        Misalignment of the volumes in mm.
    file
        The acquired run, which stands for the truth.
    """

    protocol: str = "b1000"
    snr: float = 20.0
    noise: Noise = "varying"
    seed: int = 101
    family: Family | Literal["acquired"] = "brain"
    shape: tuple[int, int, int] | None = _SMALL_SHAPE
    voxel_size: float = 2.0
    motion: float = 0.0
    # the noise of simulated cases depends on how they are written, see make_run
    file: Path | None = field(default=None, repr=False)

    def columns(self) -> dict[str, object]:
        """The case in a table."""
        columns = dataclasses.asdict(self)
        del columns["file"]
        if self.file:
            columns["file"] = self.file.name
        return {**columns, "shape": "x".join(map(str, self.shape)) if self.shape else "brain"}

    def __str__(self) -> str:
        where = f"{self.file.name}, noise" if self.file else self.family
        return f"{where} {self.seed}, {self.protocol}, b=0 SNR {self.snr:g}, {self.noise}"


@dataclass(frozen=True, eq=False)
class Run:
    """What a case amounts to.

    Attributes
    ----------
    noisy_xyzv, clean_xyzv, expected_xyzv : (X, Y, Z, V) float32
        With noise, without, and the mean over all noise.
    sigma_xyz : (X, Y, Z) float32
        True noise level of a channel.
    mask_xyz : (X, Y, Z) bool
        Brain.
    tissues_xyz : dict of (X, Y, Z) bool
        Voxels that mostly are ``white``, ``grey``, ``csf`` or ``lesion``; tissues that are absent, or not known, are
        left out.
    gradients, affine, kind
        Protocol, voxels to mm, and the noise for :func:`expected_magnitude`.
    acquired : bool
        Whether the clean run is an acquired one, with noise of its own.
    """

    noisy_xyzv: Array
    clean_xyzv: Array
    expected_xyzv: Array
    sigma_xyz: Array
    mask_xyz: NDArray[np.bool_]
    tissues_xyz: Masks
    gradients: Gradients
    affine: NDArray[np.float64]
    kind: NoiseKind
    acquired: bool = False

    def corrected(self, estimate_xyzv: Array) -> Array:
        """Take the mean of the noise away, with the true sigma."""
        return invert_expected_magnitude(estimate_xyzv, self.sigma_xyz[..., None], self.kind)


def parse_protocol(text: str) -> tuple[int, dict[float, int]]:
    """Number of b=0 volumes, and of directions for each b-value.

    Parameters
    ----------
    text
        A name in :data:`PROTOCOLS`, or ``"6+60x2500"``: 6 b=0 volumes and 60 directions at b=2500 s/mm²; more
        shells follow after another ``+``.

    Raises
    ------
    UsageError
        Anything else, a shell that is named twice, no b=0, or too few directions for a tensor.
    """
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    first, *shells = text.split("+")
    parts = [re.fullmatch(r"(\d+)x(\d+)", shell) for shell in shells]
    if not first.isdigit() or not shells or not all(parts):
        raise UsageError(
            f"expected a protocol of {', '.join(PROTOCOLS)}, or one such as 6+60x2500, found {text}"
        )
    shells_of = {float(part[2]): int(part[1]) for part in parts if part}
    counts = shells_of.values()
    if int(first) < 1 or len(counts) < len(parts) or min(counts) < 1 or sum(counts) < _FEWEST_DIRECTIONS:
        raise UsageError(
            f"expected b=0 volumes and at least {_FEWEST_DIRECTIONS} directions, each shell named once, found {text}"
        )
    return int(first), shells_of


def default_cases(seeds: Sequence[int] = (101, 102), quick: bool = False) -> list[Case]:
    """One thing at a time: each protocol, then each SNR and each kind of noise for 32 directions at b=1000.

    ``quick`` is one small case, to see that everything works.
    """
    if quick:
        return [Case(protocol="few", shape=(22, 26, 16), voxel_size=3.0, seed=seeds[0])]
    usual = [Case(protocol=name) for name in PROTOCOLS]
    usual += [Case(snr=snr) for snr in (10.0, 40.0)]
    usual += [Case(noise=noise) for noise in NOISES if noise != Case.noise]
    return [dataclasses.replace(case, seed=seed) for seed in seeds for case in usual]


def grid_of_cases(
    *,
    protocols: Sequence[str],
    snrs: Sequence[float],
    noises: Sequence[Noise],
    seeds: Sequence[int],
    families: Sequence[Family] = ("brain",),
    shape: tuple[int, int, int] | None = _SMALL_SHAPE,
    voxel_size: float = 2.0,
    motion: float = 0.0,
) -> list[Case]:
    """Every combination."""
    return [
        Case(protocol, snr, noise, seed, family, shape, voxel_size, motion)
        for protocol, noise, snr, family, seed in itertools.product(protocols, noises, snrs, families, seeds)
    ]


def acquired_cases(
    files: Sequence[Path], *, snrs: Sequence[float], noises: Sequence[Noise], seeds: Sequence[int]
) -> list[Case]:
    """Every combination of acquired runs with noise.

    Parameters
    ----------
    files
        Diffusion-weighted series (NIfTI), with their ``.bval`` and ``.bvec`` beside them.
    snrs, noises, seeds
        Of the noise that is added to them.

    Raises
    ------
    UsageError
        Two files of one name, which the tables would mix up.
    BadDataError
        A file that is missing, damaged, or does not fit the others.
    """
    names = [file.name for file in files]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{name}: expected series of different names, found {names.count(name)} of this one",
                "rename a copy of each, or link to them by other names",
            )
    cases = []
    for file in files:
        image = open_series(file)
        gradients = load_gradients(*_gradient_files(file), image.shape[3])
        counts = [(int((gradients.shell == s).sum()), round(b)) for s, b in enumerate(gradients.shell_bvals)]
        protocol = "+".join([str(counts[0][0]), *[f"{n}x{b}" for n, b in counts[1:]]])
        edge = round(float(np.prod(image.header.get_zooms()[:3])) ** (1 / 3), 2)
        cases += [
            Case(protocol, snr, noise, seed, "acquired", image.shape[:3], edge, file=file)
            for noise, snr, seed in itertools.product(noises, snrs, seeds)
        ]
    return cases


def make_run(case: Case) -> Run:
    """Simulate a case, or read it and add noise.

    Raises
    ------
    UsageError
        A protocol or noise that does not exist.
    BadDataError
        An acquired run that cannot be denoised.
    """
    if case.noise not in NOISES or not case.snr > 0 or case.seed < 0:
        raise UsageError(f"expected noise of {NOISES}, an SNR above 0 and a seed of 0 or more, found {case}")
    # one seed per case; crc32 because Python's own hash differs from process to process
    rng = np.random.default_rng([case.seed, zlib.crc32(repr(case).encode())])
    return _acquired_run(case, case.file, rng) if case.file else _simulated_run(case, rng)


def _simulated_run(case: Case, rng: np.random.Generator) -> Run:
    n_b0, shells = parse_protocol(case.protocol)
    gradients = make_protocol(n_b0, shells, rng)
    phantom = simulate_phantom(
        gradients=gradients,
        seed=case.seed,
        shape=case.shape,
        voxel_size=case.voxel_size,
        family=case.family,  # type: ignore[arg-type]
        motion=case.motion,
    )
    return _with_noise(
        case,
        rng,
        phantom.clean_xyzv,
        b0_signal(phantom),
        phantom.mask_xyz,
        _tissues(phantom),
        gradients,
        phantom.affine,
    )


def _acquired_run(case: Case, file: Path, rng: np.random.Generator) -> Run:
    """Read an acquired run; what interpolation made negative counts as no signal."""
    prepared = prepare_run(file, *_gradient_files(file))
    image = open_series(file)
    clean_xyzv = np.maximum(read_series(image, file), 0.0)
    mask_xyz, gradients = prepared.mask_xyz, prepared.gradients
    b0 = float(np.median(clean_xyzv[..., gradients.b0].mean(axis=-1)[mask_xyz]))
    return _with_noise(case, rng, clean_xyzv, b0, mask_xyz, {}, gradients, image.affine)


def _gradient_files(file: Path) -> tuple[Path, Path]:
    stem = file.name.removesuffix(".gz").removesuffix(".nii")
    return file.with_name(f"{stem}.bval"), file.with_name(f"{stem}.bvec")


def _with_noise(
    case: Case,
    rng: np.random.Generator,
    clean_xyzv: Array,
    b0: float,
    mask_xyz: NDArray[np.bool_],
    tissues_xyz: Masks,
    gradients: Gradients,
    affine: NDArray[np.float64],
) -> Run:
    """The run of a case, whose SNR is that of a b=0 signal ``b0``."""
    kind: NoiseKind = "rician" if case.noise == "varying" else case.noise
    sigma_xyz = draw_sigma_map(mask_xyz, b0 / case.snr, rng, spread=_SPREADS[case.noise])
    noisy_xyzv, sigma_xyz = add_noise(clean_xyzv, sigma=sigma_xyz, rng=rng, kind=kind)
    return Run(
        noisy_xyzv=noisy_xyzv,
        clean_xyzv=clean_xyzv,
        expected_xyzv=expected_magnitude(clean_xyzv, sigma_xyz[..., None], kind),
        sigma_xyz=sigma_xyz,
        mask_xyz=mask_xyz,
        tissues_xyz=tissues_xyz,
        gradients=gradients,
        affine=affine,
        kind=kind,
        acquired=case.file is not None,
    )


def _tissues(phantom: Phantom) -> Masks:
    shares = {
        "white": phantom.white_xyz,
        "grey": phantom.grey_xyz,
        "csf": phantom.csf_xyz,
        "lesion": phantom.lesion_xyz,
    }
    masks = {name: share_xyz > _MOST_TISSUE for name, share_xyz in shares.items()}
    return {name: mask_xyz for name, mask_xyz in masks.items() if mask_xyz.any()}


def write_run(run: Run, folder: Path) -> None:
    """Write what a method gets: ``noisy.nii``, ``mask.nii``, ``bval`` and ``bvec``."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(run.noisy_xyzv, run.affine).to_filename(folder / "noisy.nii")
    nib.Nifti1Image(run.mask_xyz.astype(np.uint8), run.affine).to_filename(folder / "mask.nii")
    np.savetxt(folder / "bval", run.gradients.bvals[None], fmt="%g")
    np.savetxt(folder / "bvec", run.gradients.bvecs.T, fmt="%.8f")
