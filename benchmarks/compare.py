"""Side by side on phantoms with known truth: the noisy run, MRtrix3's dwidenoise, and this package.

Every method gets the same noisy file, the same mask and the same number of threads, and runs as a process of its own,
whose seconds and peak memory are those of the whole process. Values are against the clean truth, in the brain.

    python benchmarks/compare.py --seed 101 102 --snr 10 20 40
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from dwmri_bidsapp.denoising.noise import correct_rician_bias
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import errors_against_truth, psnr_by_volume
from dwmri_bidsapp.simulation import add_noise, b0_signal, draw_sigma_map, make_protocol, simulate_phantom

PROTOCOLS = {
    "b2500": (6, {2500.0: 60}),
    "b1000": (1, {1000.0: 32}),
    "few": (1, {1000.0: 13}),
    "shells": (6, {1000.0: 20, 2000.0: 30, 3000.0: 40}),
}
OURS = """
import sys, nibabel as nib, numpy as np, torch
from dwmri_bidsapp.gradients import load_gradients
from dwmri_bidsapp.denoising import denoise, DenoiseOptions
folder, threads, steps = sys.argv[1:]
torch.set_num_threads(int(threads))
image = nib.load(f"{folder}/noisy.nii")
data = image.get_fdata(dtype=np.float32, caching="unchanged")
mask = np.asarray(nib.load(f"{folder}/mask.nii").dataobj) > 0
gradients = load_gradients(f"{folder}/bval", f"{folder}/bvec", data.shape[3])
result = denoise(data, gradients, mask, DenoiseOptions(max_steps=int(steps)), device="cpu", overwrite=True)
nib.Nifti1Image(result.dwi_xyzv, image.affine).to_filename(f"{folder}/ours.nii")
"""


def main() -> None:
    """Run the comparison and write one row per case and method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[101])
    parser.add_argument(
        "--snr", type=float, nargs="+", default=[20.0], help="of the b=0 signal in white matter"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, nargs="+", default=["b2500"])
    parser.add_argument("--kind", choices=["rician", "chi", "zero-filled"], default="rician")
    parser.add_argument("--voxel-size", type=float, default=2.0, help="mm")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmark.tsv"))
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for protocol in arguments.protocol:
        for seed in arguments.seed:
            for snr in arguments.snr:
                for row in compare(protocol, seed, snr, arguments):
                    rows.append(
                        {"protocol": protocol, "seed": seed, "snr": snr, "noise": arguments.kind, **row}
                    )
                    print("  ".join(f"{name} {_text(value)}" for name, value in rows[-1].items()), flush=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", restval="n/a")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)


def compare(protocol: str, seed: int, snr: float, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All methods on one phantom."""
    rng = np.random.default_rng([seed, int(snr)])
    n_b0, shells = PROTOCOLS[protocol]
    gradients = make_protocol(n_b0, shells, rng)
    phantom = simulate_phantom(gradients=gradients, seed=seed, voxel_size=arguments.voxel_size)
    sigma = draw_sigma_map(phantom.mask_xyz, b0_signal(phantom) / snr, rng)
    noisy, sigma = add_noise(phantom.clean_xyzv, sigma=sigma, rng=rng, kind=arguments.kind)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder, noisy, phantom.mask_xyz, gradients, phantom.affine)
        for method, command in _commands(folder, arguments).items():
            used = _timed(command) if command else {}
            estimate = noisy if not command else _read(folder / f"{method}.nii")
            row: dict[str, object] = {"method": method, **used}
            row.update(_scores(estimate, noisy, phantom.clean_xyzv, phantom.mask_xyz, gradients))
            corrected = estimate.copy()
            for volume in range(gradients.n_volumes):
                corrected[..., volume] = correct_rician_bias(estimate[..., volume], sigma)
            after = errors_against_truth(corrected, phantom.clean_xyzv, gradients, phantom.mask_xyz)
            row.update({f"{key}_corrected": after[key] for key in ("psnr_dwi", "fa_error", "md_error")})
            rows.append(row)
    return rows


def _scores(
    estimate: np.ndarray, noisy: np.ndarray, clean: np.ndarray, mask: np.ndarray, gradients: Gradients
) -> dict[str, object]:
    errors = errors_against_truth(estimate, clean, gradients, mask)
    wanted = ("psnr_dwi", "ssim_dwi", "psnr_b0", "fa_error", "md_error", "angular_error")
    gains = psnr_by_volume(estimate, clean, mask, data_range=1.0) - psnr_by_volume(
        noisy, clean, mask, data_range=1.0
    )
    return {
        **{key: errors[key] for key in wanted if key in errors},
        "smallest_gain_of_a_volume": float(gains.min()),
    }


def _commands(folder: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each method; the noisy run has none."""
    commands: dict[str, list[str]] = {"noisy": []}
    if shutil.which("dwidenoise"):
        options = ["-quiet", "-nthreads", str(arguments.threads), "-mask", str(folder / "mask.nii")]
        commands["dwidenoise"] = [
            "dwidenoise",
            *options,
            str(folder / "noisy.nii"),
            str(folder / "dwidenoise.nii"),
        ]
    commands["ours"] = [sys.executable, "-c", OURS, str(folder), str(arguments.threads), str(arguments.steps)]
    return commands


def _timed(command: list[str]) -> dict[str, object]:
    """Seconds and peak memory of a process."""
    # as the app itself sets it: threads that spin long slow a busy machine down
    environment = {**os.environ, "GOMP_SPINCOUNT": "3000"}
    start = time.perf_counter()
    peak = 0
    with psutil.Popen(command, env=environment) as process:
        # what the kernel reports of an ended child includes the memory of the parent it was forked from
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0])
    return {"seconds": time.perf_counter() - start, "peak_mb": peak / 1e6}


def _write_inputs(
    folder: Path, noisy: np.ndarray, mask: np.ndarray, gradients: Gradients, affine: np.ndarray
) -> None:
    nib.Nifti1Image(noisy, affine).to_filename(folder / "noisy.nii")
    nib.Nifti1Image(mask.astype(np.uint8), affine).to_filename(folder / "mask.nii")
    np.savetxt(folder / "bval", gradients.bvals[None], fmt="%g")
    np.savetxt(folder / "bvec", gradients.bvecs.T, fmt="%.8f")


def _read(path: Path) -> np.ndarray:
    return nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
