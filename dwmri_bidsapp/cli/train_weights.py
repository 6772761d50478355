"""``train-weights``: the weights that ``--init`` starts from, out of simulated runs and of one's own datasets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import PACKAGE, Config
from ..errors import BadDataError, InputOutputError, UsageError

if TYPE_CHECKING:
    from ..denoising.pretrain import Report, TrainingRun
    from ..pretraining import PretrainingConfig


def build_train_weights_parser() -> argparse.ArgumentParser:
    """Return the parser of ``dwmri-bidsapp train-weights``."""
    parser = argparse.ArgumentParser(
        prog=f"{PACKAGE} train-weights",
        description="Train weights to start from (--init FILE) on simulated runs, which are drawn anew, and on runs of "
        "BIDS datasets of your own. Writes FILE, and beside it FILE.json: what it was made of.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("out_file", type=Path, metavar="FILE", help="weights to write, such as mine.pt")
    add(
        "--config-file",
        type=Path,
        metavar="TOML",
        help="fields of PretrainingConfig (default: those of the package)",
    )
    add("--bids-dir", nargs="+", type=Path, default=[], metavar="BIDS_DIR",
        help="datasets to learn from as well, without any clean reference; they are only read")  # fmt: skip
    add("--steps", type=int, metavar="N", help="in place of the file's")
    add("--n-runs", type=int, metavar="N", help="simulated runs, in place of the file's")
    add("--random-seed", type=int, metavar="N", help="in place of the file's")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
    return parser


def train_weights_command(arguments: Sequence[str]) -> int:
    """Run the command; the exit code."""
    namespace = build_train_weights_parser().parse_args(arguments)
    import torch

    from ..denoising.hardware import choose_device
    from ..denoising.voxels import keeping_memory
    from ..pretraining import PretrainingConfig, draw_run, read_pretraining_config, train_weights

    config = read_pretraining_config(namespace.config_file) if namespace.config_file else PretrainingConfig()
    given = {key: getattr(namespace, key) for key in ("steps", "n_runs", "random_seed")}
    config = dataclasses.replace(config, **{key: value for key, value in given.items() if value is not None})
    if config.steps < 1 or config.n_runs < 0 or not (config.n_runs or namespace.bids_dir):
        raise UsageError(
            f"expected at least one step and one run, found --steps {config.steps} and --n-runs {config.n_runs}"
        )
    if config.random_seed < 0:
        raise UsageError(f"expected a seed of 0 or more, found {config.random_seed}")
    _check_writable(namespace.out_file)
    if namespace.threads:
        torch.set_num_threads(namespace.threads)
    device = str(choose_device(namespace.device))
    start = time.perf_counter()
    own = [run for bids_dir in namespace.bids_dir for run in _own_runs(bids_dir, config)]
    n_own = len(own)
    if not (config.n_runs or own):
        raise BadDataError(
            "expected a run to learn from, found none that can be used",
            "see what was left out above, or add --n-runs",
        )
    history, report = _course(config.steps, "the blind base's")
    with keeping_memory():
        runs = _simulated_runs(config.n_runs, "", lambda index: draw_run(config, index)) + own
        print(f"{PACKAGE}: training on {config.n_runs} simulated runs and {n_own} of your own", flush=True)
        weights = train_weights(config, runs, device=device, report=report)
        del runs[:], own[:]
        fusion, fusion_history = _fusion(config, weights, device)
        single_b0, single_b0_history = _single_b0(config, device)
    weights |= fusion | single_b0
    _write(namespace.out_file, weights, {
        "Description": "Weights of dwmri-bidsapp, made by its command train-weights",
        "GeneratedBy": {"Name": PACKAGE, "Version": __version__},
        "Configuration": dataclasses.asdict(config),
        "SimulatedRuns": config.n_runs,
        "OwnRuns": n_own,
        "Weights": sum(value.numel() for value in weights.values()),
        "Device": device,
        "Seconds": round(time.perf_counter() - start),
        "ErrorOverBlindBase": history,
        "FusionErrorOverMean": fusion_history,
        "SingleB0ErrorOverLocalPCA": single_b0_history,
    })  # fmt: skip
    print(f"{PACKAGE}: done: {namespace.out_file}", flush=True)
    return 0


def _simulated_runs(n: int, what_for: str, draw: Callable[[int], TrainingRun]) -> list[TrainingRun]:
    runs = []
    for index in range(n):
        runs.append(draw(index))
        if (index + 1) % 20 == 0 or index + 1 == n:
            print(f"{PACKAGE}: {index + 1} of {n} runs{what_for} simulated", flush=True)
    return runs


def _course(steps: int, than: str) -> tuple[dict[int, float], Report]:
    """The course of a training, and what fills it in and tells the user."""
    history: dict[int, float] = {}

    def report(step: int, ratio: float) -> None:
        history[step] = round(ratio, 4)
        print(f"{PACKAGE}: step {step} of {steps}, error {ratio:.3f} of {than}", flush=True)

    return history, report


def _fusion(
    config: PretrainingConfig, weights: dict[str, Any], device: str
) -> tuple[dict[str, Any], dict[int, float]]:
    """Weights of the fusion of a trained network's estimates, and the course of their training; none if not wanted."""
    from ..denoising.denoise import make_model
    from ..options import DenoiseOptions
    from ..pretraining import draw_fusion_run, train_fusion

    if not (config.n_runs and config.fusion_runs and config.fusion_steps):
        return {}, {}
    options = DenoiseOptions(model=config.model, base_filters=config.base_filters, init="random")
    model = make_model(options)
    model.load_state_dict(weights)
    model.eval()
    runs = _simulated_runs(
        config.fusion_runs, " for the fusion", lambda index: draw_fusion_run(config, index, model)
    )
    history, report = _course(config.fusion_steps, "the mean's")
    return train_fusion(config, runs, device=device, report=report), history


def _single_b0(config: PretrainingConfig, device: str) -> tuple[dict[str, Any], dict[int, float]]:
    """The same for the network of a single b=0."""
    from ..pretraining import draw_single_b0_run, train_single_b0

    if not (config.n_runs and config.single_b0_runs and config.single_b0_steps):
        return {}, {}
    runs = _simulated_runs(
        config.single_b0_runs, " for a single b=0", lambda index: draw_single_b0_run(config, index)
    )
    history, report = _course(config.single_b0_steps, "the local PCA's")
    return train_single_b0(config, runs, device=device, report=report), history


def _own_runs(bids_dir: Path, config: PretrainingConfig) -> list[TrainingRun]:
    """All runs of a dataset that can be used; what cannot be is told."""
    from ..bids import find_runs
    from ..preparation import open_series, prepare_run, read_series
    from ..pretraining import measured_run

    found, unusable, _ = find_runs(Config(bids_dir=bids_dir, out_dir=Path(tempfile.gettempdir())))
    for error in unusable:
        print(f"{PACKAGE}: left out: {error}", flush=True)
    runs = []
    for run in found:
        try:
            prepared = prepare_run(run.dwi, run.bval, run.bvec, mask_file=run.mask)
            series_xyzv = read_series(open_series(run.dwi), run.dwi)
            runs.append(measured_run(series_xyzv, prepared.mask_xyz, prepared.gradients, config))
        except BadDataError as error:
            print(f"{PACKAGE}: left out: {run.dwi}: {error}", flush=True)
    return runs


def _check_writable(path: Path) -> None:
    """Find out before the training whether the weights can be written after it."""
    if path.is_dir() or path.suffix == ".json":
        raise UsageError(
            f"{path}: expected a name for the weights, such as mine.pt (mine.json goes beside it)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be written: {error.strerror}") from error


def _write(path: Path, weights: dict[str, Any], card: dict[str, Any]) -> None:
    """Write the weights and their card, whole or not at all."""
    from ..denoising.train import save_state

    try:
        save_state(weights, path)
        path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be written: {error.strerror}") from error
