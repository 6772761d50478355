"""What each part of the network is worth in weights: trainings without it, judged on brains that none was made from.

    python benchmarks/pretraining_parts.py [--runs 80] [--steps 3000] [--seeds 0 1 2] [--threads 2] [--only NAME ...]
    python benchmarks/pretraining_parts.py --weights FILE ... [--threads 2]

The same simulated runs for all trainings, far fewer and shorter than those of the shipped weights. Prints a Markdown
table: squared error of the blind prediction on the held-out brains over that of the blind base, and the ratio to the
complete network's, seed by seed. No run is denoised to its end: blending, local PCA and fusion are left out. With
--weights nothing is trained: files of weights are judged in the same way.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import numpy as np
import torch
from torch import nn

from dwmri_bidsapp.benchmark.cases import Case, make_run
from dwmri_bidsapp.denoising.context import Context, places_by_index
from dwmri_bidsapp.denoising.denoise import make_model
from dwmri_bidsapp.denoising.hardware import choose_precision
from dwmri_bidsapp.denoising.losses import make_loss
from dwmri_bidsapp.denoising.predict import predict_volume, tiles_of
from dwmri_bidsapp.denoising.pretrain import TrainingRun, pretrain
from dwmri_bidsapp.denoising.voxels import keeping_memory
from dwmri_bidsapp.options import DenoiseOptions
from dwmri_bidsapp.pretraining import KnownRun, PretrainingConfig, draw_run, known_run

VARIANTS: dict[str, dict[str, Any]] = {
    "complete": {},
    "without attention": {"leave_out": ["attention"]},
    "without the half-resolution path": {"leave_out": ["half-resolution"]},
    "without detail enhancement": {"leave_out": ["detail"]},
    "without skip connections": {"leave_out": ["skip"]},
    "without encoding": {"leave_out": ["encoding"]},
    "index in place of q-space": {"leave_out": ["q-space"]},
    "without context": {"leave_out": ["context"]},
    "without the blind base": {"leave_out": ["base"]},
    "alpha 0 (no edge loss)": {"alpha": 0.0},
    "alpha 1": {"alpha": 1.0},
    "beta 0 (no gradient loss)": {"beta": 0.0},
    "beta 0.5": {"beta": 0.5},
    "beta 1": {"beta": 1.0},
    "beta 2": {"beta": 2.0},
    "MSE loss": {"loss": "mse"},
    "L1 loss": {"loss": "l1"},
    "DenoiserNet": {"model": "denoiser"},
    "DenoiserNet, L1 loss": {"model": "denoiser", "loss": "l1"},
}
HELD_OUT = [
    Case(protocol, snr, "varying", seed)
    for seed, (protocol, snr) in enumerate(
        [("few", 20), ("b1000", 10), ("b1000", 20), ("b1000", 40), ("b2500", 20), ("shells", 20)], start=501
    )
]
JUDGED_VOLUMES = 8


def held_out_run(case: Case) -> TrainingRun:
    """A brain with its truth."""
    run = make_run(case)
    return known_run(KnownRun(run.noisy_xyzv, run.expected_xyzv, run.sigma_xyz, run.mask_xyz, run.gradients))


def seen_without(context: Context, leave_out: list[str]) -> Context:
    """The same run as a network without some part sees it."""
    if "q-space" in leave_out:
        places = torch.as_tensor(places_by_index(context.neighbours.numpy()), dtype=torch.float32)
        context = dataclasses.replace(context, coordinates_vck=places)
    return dataclasses.replace(context, leave_out=leave_out)


def error_over_base(model: nn.Module, run: TrainingRun) -> float:
    """Squared error of the prediction of some diffusion-weighted volumes over that of the blind base."""
    context: Any = run.context
    weighted = context.targets[context.shell[context.targets] > 0]
    chosen = weighted[np.linspace(0, len(weighted) - 1, JUDGED_VOLUMES).astype(int)].tolist()
    tiles = tiles_of(run.mask_xyz, halo=int(model.reach))  # type: ignore[arg-type]
    precision = choose_precision(context.device, True)
    ours = base = 0.0
    for volume in chosen:
        prediction_n = context.voxels.gather(predict_volume(model, context, volume, tiles, precision))
        truth_n = run.target_vn[volume].float()
        ours += float((prediction_n - truth_n).square().sum())
        base += float((context.base_vn[volume].float() - truth_n).square().sum())
    return ours / base


def measure(
    variant: dict[str, Any], seed: int, steps: int, runs: list[TrainingRun], held_out: list[TrainingRun]
) -> list[float]:
    """Train once; the error on every held-out brain."""
    parts = list(variant.get("leave_out", []))

    def see(given: list[TrainingRun]) -> list[TrainingRun]:
        return [dataclasses.replace(run, context=seen_without(run.context, parts)) for run in given]

    config = PretrainingConfig()
    options = DenoiseOptions(init="random", random_seed=seed, **variant)
    model = make_model(options).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    pretrain(
        model,
        see(runs),
        make_loss(options.loss, options.alpha, options.beta),
        steps=steps,
        batch_size=config.batch_size,
        patch_size=config.patch_size,
        learning_rate=config.learning_rate,
        precision=choose_precision(torch.device("cpu"), True),
        generator=torch.Generator().manual_seed(seed),
    )
    return [error_over_base(model, run) for run in see(held_out)]


def judge_files(paths: list[str]) -> None:
    """Tell the error of the networks in files of weights, as lines of JSON."""
    with keeping_memory():
        held_out = [held_out_run(case) for case in HELD_OUT]
        for path in paths:
            model = make_model(DenoiseOptions(init=path)).eval()
            model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            errors = [error_over_base(model, run) for run in held_out]
            line = {"weights": path, "errors": [round(e, 4) for e in errors], "mean": float(np.mean(errors))}
            print(json.dumps(line), flush=True)


def main() -> None:
    """Train every variant with every seed, tell each result as a line of JSON, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--weights", nargs="+", default=[])
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.weights:
        judge_files(wanted.weights)
        return
    with keeping_memory():
        runs = [draw_run(PretrainingConfig(), index) for index in range(wanted.runs)]
        held_out = [held_out_run(case) for case in HELD_OUT]
        found: dict[str, dict[int, float]] = {}
        for seed in wanted.seeds:
            for name in wanted.only:
                errors = measure(VARIANTS[name], seed, wanted.steps, runs, held_out)
                found.setdefault(name, {})[seed] = float(np.mean(errors))
                line = {"variant": name, "seed": seed, "errors": [round(error, 4) for error in errors]}
                print(json.dumps(line), flush=True)
    reference = found.get("complete", {})
    print("\n| network | error over the base's | ratio to the complete one, seed by seed |\n|---|---|---|")
    for name, errors_of in found.items():
        ratios = [f"{errors_of[seed] / reference[seed]:.3f}" for seed in errors_of if seed in reference]
        print(f"| {name} | {np.mean(list(errors_of.values())):.3f} | {', '.join(ratios)} |")


if __name__ == "__main__":
    main()
