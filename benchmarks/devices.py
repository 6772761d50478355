"""The same run on several devices: seconds of each stage, memory, how far the results differ, whether they repeat.

    python benchmarks/devices.py [--device cpu cuda] [--protocol b2500] [--steps 100 0] [--threads 2] [--repeats 2]

Simulates one whole brain, denoises it in a process of its own for each device, number of steps and precision, and
prints a Markdown table. "First" is the first call in a process, with all that a GPU has to load; "again" the last of
the repeats. Differences are to the first row of the same number of steps, in units of the noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(folder: Path, device_name: str, options: dict[str, Any], threads: int, repeats: int) -> None:
    """Denoise the run of a folder, and write the result and what it took beside it."""
    import nibabel as nib
    import numpy as np
    import torch

    from dwmri_bidsapp.denoising import denoise
    from dwmri_bidsapp.gradients import load_gradients
    from dwmri_bidsapp.options import DenoiseOptions

    torch.set_num_threads(threads)
    noisy_xyzv = nib.load(folder / "noisy.nii").get_fdata(dtype=np.float32)
    mask_xyz = nib.load(folder / "mask.nii").get_fdata(dtype=np.float32) > 0
    gradients = load_gradients(folder / "bval", folder / "bvec", noisy_xyzv.shape[3])
    seconds, results = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        found = denoise(noisy_xyzv, gradients, mask_xyz, DenoiseOptions(**options), device=device_name)
        seconds.append(time.perf_counter() - start)
        results.append(found.dwi_xyzv)
    np.save(folder / "result.npy", results[-1])
    report = {
        "first": seconds[0],
        "again": seconds[-1],
        "stages": found.info["seconds"],
        "precision": found.info["precision"],
        "gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_initialized() else 0.0,
        "repeats": all(np.array_equal(results[0], other) for other in results[1:]),
    }
    (folder / "report.json").write_text(json.dumps(report))


def main() -> None:
    """Simulate, measure every combination, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--protocol", default="b2500")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        folder, device, options = arguments.only
        measure(Path(folder), device, json.loads(options), arguments.threads, arguments.repeats)
        return

    import numpy as np

    from dwmri_bidsapp.benchmark.cases import Case, make_run, write_run

    run = make_run(Case(protocol=arguments.protocol, shape=None, seed=401))
    truth_nv = run.clean_xyzv[run.mask_xyz][:, run.gradients.dwi]
    sigma_n1 = run.sigma_xyz[run.mask_xyz][:, None]
    print(f"{run.noisy_xyzv.shape}, {int(run.mask_xyz.sum())} voxels in the mask", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(run, folder)
        print(
            "| device | steps | precision | first, s | again, s | stages, s | GPU, MB | same bits | difference, error |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for steps in arguments.steps:
            reference_nv = None
            for device in arguments.device:
                for mixed in (True, False):
                    options = json.dumps({"max_steps": steps, "mixed_precision": mixed})
                    command = [sys.executable, __file__, "--only", name, device, options]
                    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
                    subprocess.run(command, check=True)
                    report = json.loads((folder / "report.json").read_text())
                    result_nv = np.load(folder / "result.npy")[run.mask_xyz][:, run.gradients.dwi]
                    reference_nv = result_nv if reference_nv is None else reference_nv
                    difference = np.sqrt(np.mean(((result_nv - reference_nv) / sigma_n1) ** 2))
                    error = np.sqrt(np.mean(((result_nv - truth_nv) / sigma_n1) ** 2))
                    row = [
                        device, steps, report["precision"], f"{report['first']:.1f}", f"{report['again']:.1f}",
                        ", ".join(f"{stage} {s:.2f}" for stage, s in report["stages"].items()),
                        f"{report['gpu_mb']:.0f}", "yes" if report["repeats"] else "no",
                        f"{difference:.4f}, {error:.4f}",
                    ]  # fmt: skip
                    print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
