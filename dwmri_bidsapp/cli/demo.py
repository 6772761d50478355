"""``demo`` and ``simulate``: datasets with known truth."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..config import PACKAGE
from ..errors import UsageError
from .parser import build_subcommand_parser

DEMO_SHAPE = (38, 46, 38)
"""Grid of the demonstration: whole brains of 5 mm voxels."""


def run_subcommand(command: str, arguments: Sequence[str]) -> int:
    """Run ``demo`` or ``simulate`` with its arguments, and return the exit code."""
    parser = build_subcommand_parser(command)
    if command == "demo":
        namespace, others = parser.parse_known_args(arguments)
        return demo(namespace, others)
    return simulate(parser.parse_args(arguments))


def simulate(namespace: argparse.Namespace) -> int:
    """Write a dataset as the options say."""
    import numpy as np

    from ..simulation import make_protocol, write_bids_dataset

    rng = np.random.default_rng(namespace.simulation_seed)
    shells: Counter[float] = Counter()
    for bval, n_directions in namespace.shell or [(1000, 60)]:
        shells[bval] += n_directions
    labels = write_bids_dataset(
        namespace.out_dir,
        n_participants=namespace.n_participants,
        protocol=make_protocol(namespace.n_b0, shells, rng),
        voxel_size=namespace.voxel_size,
        snr=namespace.snr,
        kind=namespace.noise,
        sigma_spread=namespace.sigma_spread,
        family=namespace.family,
        lesions=namespace.lesions,
        motion=namespace.motion,
        seed=namespace.simulation_seed,
    )
    print(f"{PACKAGE}: done: {len(labels)} participants simulated, see {namespace.out_dir}")
    return 0


def demo(namespace: argparse.Namespace, others: Sequence[str]) -> int:
    """Simulate participants, run both levels as a user would, and compare with the truth.

    Parameters
    ----------
    namespace
        Options of the demonstration.
    others
        Options for the participant level.
    """
    out_dir = namespace.out_dir.absolute()
    bids_dir, derivatives = out_dir / "bids", out_dir / "derivatives"
    if bids_dir.exists():
        print(f"{PACKAGE}: {bids_dir} is there already, and is used again", flush=True)
    else:
        print(f"{PACKAGE}: simulating {namespace.n_participants} participants in {bids_dir}", flush=True)
        _simulate_whole(namespace, bids_dir)
    from .boundary import main

    truth = bids_dir / "derivatives" / "truth"
    code = main(
        [str(bids_dir), str(derivatives), "participant", "group", "--derivatives", f"truth={truth}",
         "--work-dir", str(out_dir / "work"), *others]
    )  # fmt: skip
    if code == 0:
        _print_comparison(bids_dir, derivatives)
    return code


def _simulate_whole(namespace: argparse.Namespace, bids_dir: Path) -> None:
    """Simulate beside the final place, so that an interrupted demonstration leaves no half dataset."""
    import shutil

    from ..simulation import write_bids_dataset

    partial = bids_dir.with_name("bids.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_bids_dataset(
        partial,
        n_participants=namespace.n_participants,
        shape=DEMO_SHAPE,
        snr=namespace.snr,
        seed=namespace.simulation_seed,
    )
    os.replace(partial, bids_dir)


def _print_comparison(bids_dir: Path, derivatives: Path) -> None:
    """Print the errors of each participant before and after, against the truth."""
    import nibabel as nb
    import numpy as np

    from ..gradients import load_gradients
    from ..metrics import errors_against_truth

    print(
        f"\n{'':8}{'PSNR of DWI, dB':^26}{'FA error':^24}\n{'':8}{'before':>12}{'after':>12}{'before':>12}{'after':>12}"
    )
    for image in sorted(bids_dir.glob("sub-*/dwi/*_dwi.nii.gz")):
        stem = image.name.removesuffix("_dwi.nii.gz")
        truth_dir = bids_dir / "derivatives" / "truth" / image.parent.relative_to(bids_dir)
        after = derivatives / image.parent.relative_to(bids_dir) / f"{stem}_desc-denoised_dwi.nii.gz"
        if not after.exists():
            continue
        truth_xyzv = nb.load(truth_dir / f"{stem}_desc-truth_dwi.nii.gz").get_fdata(dtype=np.float32)
        mask_xyz = nb.load(truth_dir / f"{stem}_desc-brain_mask.nii.gz").get_fdata(dtype=np.float32) > 0
        gradients = load_gradients(
            image.with_name(f"{stem}_dwi.bval"), image.with_name(f"{stem}_dwi.bvec"), truth_xyzv.shape[3]
        )
        noisy, denoised = (
            errors_against_truth(nb.load(path).get_fdata(dtype=np.float32), truth_xyzv, gradients, mask_xyz)
            for path in (image, after)
        )
        print(
            f"{stem:8}{noisy['psnr_dwi']:12.2f}{denoised['psnr_dwi']:12.2f}"
            f"{noisy['fa_error']:12.4f}{denoised['fa_error']:12.4f}"
        )
    reports = [*sorted(derivatives.glob("sub-*.html")), derivatives / "group.html"]
    if not reports[:-1]:
        raise UsageError(f"{derivatives}: no report was written")
    print("\nreports:\n" + "\n".join(f"  {report}" for report in reports))
    print(f"{PACKAGE}: done: open {reports[-1]}")
