"""A raw BIDS dataset of simulated participants, with the noise-free truth as a derivative."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import InputOutputError, UsageError
from ..gradients import Gradients
from .noise import NoiseKind, add_noise, b0_signal, draw_sigma_map
from .protocol import make_protocol
from .signal import Family, Phantom, simulate_phantom

_BIDS_VERSION = "1.10.0"
_REPETITION_TIME_S = 3.2

_README = """# Simulated diffusion MRI

{n} simulated participants, one diffusion run each: phantoms made from {source}
(b0 signal-to-noise ratio {snr:g}, {kind} noise, volumes out of line by {motion:g} mm, seed {seed}). Nobody was scanned.

`derivatives/truth` holds the same runs without noise (`desc-truth`), the brain masks they were made with, and
the noise level (`param-sigma`): use them to measure how far a denoised run is from the truth.
"""

_SOURCES: dict[Family, str] = {"brain": "the MNI152 tissue maps", "geometric": "random geometry"}


def write_bids_dataset(
    out_dir: str | Path,
    *,
    n_participants: int = 2,
    protocol: Gradients | Sequence[Gradients] | None = None,
    shape: tuple[int, int, int] | None = None,
    voxel_size: float | None = None,
    snr: float = 20.0,
    kind: NoiseKind = "rician",
    sigma_spread: float = 0.5,
    family: Family = "brain",
    lesions: bool = True,
    motion: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Simulate participants and write them as BIDS, the truth included.

    Parameters
    ----------
    out_dir
        A folder that is empty or does not exist.
    n_participants
        How many; participant number i has the anatomy of seed ``seed + i``.
    protocol
        The gradient table, or several of them, taken in turn. None: 3 b=0 volumes and 30
        directions at b=1000 s/mm².
    shape, voxel_size
        The grid, as for :func:`simulate_phantom`.
    snr
        Mean clean b=0 signal in white matter / mean sigma in the brain.
    kind
        Kind of noise, as for :func:`add_noise`.
    sigma_spread
        Unevenness of the noise, as for :func:`draw_sigma_map`.
    family, lesions, motion
        As for :func:`simulate_phantom`; the truth moves as the noisy volumes do.
    seed
        Seed of everything.

    Returns
    -------
    list of str
        Participants' labels, such as ``"01"``.

    Raises
    ------
    UsageError
        The folder is not empty, or a number makes no sense.
    InputOutputError
        The files cannot be written.
    """
    root = Path(out_dir)
    if n_participants < 1 or not snr > 0 or seed < 0:
        raise UsageError(
            f"expected participants, an SNR above 0 and a seed of 0 or more, found {n_participants}, {snr:g} and {seed}"
        )
    try:
        if root.exists() and any(root.iterdir()):
            raise UsageError(f"{root}: expected an empty folder for the simulation", "name another one")
        labels = [f"{i + 1:02d}" for i in range(n_participants)]
        source = _SOURCES.get(family, family)
        readme = _README.format(n=n_participants, source=source, snr=snr, kind=kind, motion=motion, seed=seed)
        for i, label in enumerate(labels):
            rng = np.random.default_rng([seed + i, 2])
            table = _choose_protocol(protocol, i, rng)
            phantom = simulate_phantom(
                gradients=table,
                seed=seed + i,
                shape=shape,
                voxel_size=voxel_size,
                family=family,
                lesions=lesions,
                motion=motion,
            )
            sigma_xyz = draw_sigma_map(phantom.mask_xyz, b0_signal(phantom) / snr, rng, spread=sigma_spread)
            noisy_xyzv, _ = add_noise(phantom.clean_xyzv, sigma=sigma_xyz, rng=rng, kind=kind)
            if (
                i == 0
            ):  # not before a first participant could be made: the call with other numbers needs the folder
                _write_top_level(root, labels, readme, seed)
            _write_raw(root / f"sub-{label}" / "dwi" / f"sub-{label}", noisy_xyzv, phantom)
            _write_truth(root / "derivatives" / "truth", label, phantom, sigma_xyz)
    except OSError as error:
        raise InputOutputError(f"{error.filename or root}: {error.strerror or error}") from error
    return labels


def _choose_protocol(
    protocol: Gradients | Sequence[Gradients] | None, index: int, rng: np.random.Generator
) -> Gradients:
    if protocol is None:
        return make_protocol(3, {1000: 30}, rng)
    if isinstance(protocol, Gradients):
        return protocol
    return protocol[index % len(protocol)]


def _write_top_level(root: Path, labels: Sequence[str], readme: str, seed: int) -> None:
    """Write what stands beside the participants, for the raw data and for the truth."""
    truth = root / "derivatives" / "truth"
    truth.mkdir(parents=True)
    generator = {"Name": "dwmri-bidsapp simulate"}
    common: dict[str, Any] = {"BIDSVersion": _BIDS_VERSION, "License": "CC0", "GeneratedBy": [generator]}
    authors = ["Simulated by dwmri-bidsapp"]
    raw = {"Name": "Simulated diffusion MRI", "DatasetType": "raw", "Authors": authors, **common}
    _write_json(root / "dataset_description.json", raw)
    _write_json(
        truth / "dataset_description.json",
        {
            "Name": "Noise-free truth of simulated diffusion MRI",
            "DatasetType": "derivative",
            "Authors": authors,
            **common,
            "SourceDatasets": [{"URL": "../.."}],
            "DatasetLinks": {"raw": "../.."},
        },
    )
    for folder in (root, truth):
        (folder / "README.md").write_text(readme, encoding="utf-8")
    # The validator asks for gradient tables beside a derived dwi, but rejects their names.
    (truth / ".bidsignore").write_text("*_dwi.bval\n*_dwi.bvec\n*_dwimap.*\n", encoding="utf-8")
    rows = [f"sub-{label}\t{seed + i}" for i, label in enumerate(labels)]
    (root / "participants.tsv").write_text(
        "\n".join(["participant_id\tanatomy_seed", *rows]) + "\n", encoding="utf-8"
    )
    _write_json(
        root / "participants.json", {"anatomy_seed": {"Description": "Seed the anatomy was drawn from"}}
    )


def _write_raw(stem: Path, noisy_xyzv: NDArray[np.float32], phantom: Phantom) -> None:
    """Write image, gradient table and sidecar of one run."""
    stem.parent.mkdir(parents=True)
    _write_image(Path(f"{stem}_dwi.nii.gz"), noisy_xyzv, phantom.affine)
    _write_gradients(stem, "dwi", phantom.gradients)
    _write_json(
        Path(f"{stem}_dwi.json"),
        {
            "Manufacturer": "none (simulated)",
            "MagneticFieldStrength": 3,
            "RepetitionTime": _REPETITION_TIME_S,
            "EchoTime": 0.09,
            "FlipAngle": 90,
            "PhaseEncodingDirection": "j",
            "TotalReadoutTime": 0.05,
        },
    )


def _write_truth(truth: Path, label: str, phantom: Phantom, sigma_xyz: NDArray[np.float32]) -> None:
    """Write the noise-free run, its mask and its noise level."""
    stem = truth / f"sub-{label}" / "dwi" / f"sub-{label}"
    stem.parent.mkdir(parents=True)
    source = f"bids:raw:sub-{label}/dwi/sub-{label}_dwi.nii.gz"
    _write_image(Path(f"{stem}_desc-truth_dwi.nii.gz"), phantom.clean_xyzv, phantom.affine)
    _write_gradients(stem, "desc-truth_dwi", phantom.gradients)
    _write_json(
        Path(f"{stem}_desc-truth_dwi.json"),
        {"Description": "Signal without noise", "Sources": [source], "SkullStripped": True},
    )
    _write_image(Path(f"{stem}_desc-brain_mask.nii.gz"), phantom.mask_xyz.astype(np.uint8), phantom.affine)
    _write_json(Path(f"{stem}_desc-brain_mask.json"), {"Type": "Brain", "Sources": [source]})
    _write_image(Path(f"{stem}_model-noise_param-sigma_dwimap.nii.gz"), sigma_xyz, phantom.affine)


def _write_image(path: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], _REPETITION_TIME_S))
    nib.save(image, path)


def _write_gradients(stem: Path, suffix: str, gradients: Gradients) -> None:
    """Write the b-values and directions as FSL has them: one row, and three rows."""
    np.savetxt(f"{stem}_{suffix}.bval", gradients.bvals[None], fmt="%g")
    np.savetxt(f"{stem}_{suffix}.bvec", gradients.bvecs.T, fmt="%.6f")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
