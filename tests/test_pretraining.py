"""Weights to start from: the runs they learn from, the training, the command, and the weights that are shipped."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dwmri_bidsapp.cli import main
from dwmri_bidsapp.denoising import DenoiseOptions, denoise
from dwmri_bidsapp.denoising.denoise import make_model
from dwmri_bidsapp.denoising.fusion import FUSION, SINGLE_B0, make_fusion
from dwmri_bidsapp.errors import InputOutputError, UsageError
from dwmri_bidsapp.options import shipped_weights
from dwmri_bidsapp.pretraining import (
    PretrainingConfig,
    draw_fusion_run,
    draw_run,
    draw_single_b0_run,
    measured_run,
    read_pretraining_config,
    train_fusion,
    train_single_b0,
    train_weights,
)
from dwmri_bidsapp.simulation import add_noise, b0_signal, make_protocol, simulate_phantom

TINY = PretrainingConfig(
    base_filters=8, n_runs=2, steps=250, batch_size=2, patch_size=12, fusion_steps=200, single_b0_steps=300
)


@pytest.fixture(scope="module")
def runs() -> list:
    return [draw_run(TINY, index) for index in range(2)]


def test_an_index_is_a_run(runs: list) -> None:
    again = draw_run(TINY, 1)
    assert torch.equal(again.context.snr_vn, runs[1].context.snr_vn)
    assert again.context.snr_vn.shape != runs[0].context.snr_vn.shape
    other = draw_run(dataclasses.replace(TINY, random_seed=1), 1)
    assert not torch.equal(other.mask_xyz, runs[1].mask_xyz)


def test_targets_are_the_measured_volumes_without_their_noise(runs: list) -> None:
    for run in runs:
        dwi = run.context.shell > 0
        noise = run.context.snr_vn[dwi].float() - run.target_vn[dwi].float()
        assert abs(float(noise.mean())) < 0.05, "the mean of the magnitudes, the noise floor included"
        assert 0.3 < float(noise.std()) < 1.2
        base = run.context.base_vn[dwi].float() - run.target_vn[dwi].float()
        assert run.error == pytest.approx(float(base.square().mean()), rel=1e-3)


def test_training_learns_and_is_the_same_to_the_bit(runs: list) -> None:
    ratios: list[tuple[int, float]] = []
    first = train_weights(TINY, runs, report=lambda step, ratio: ratios.append((step, ratio)))
    again = train_weights(TINY, runs)
    assert [step for step, _ in ratios] == [200, 250] and ratios[-1][1] < 0.97
    assert all(torch.equal(first[name], again[name]) for name in first)
    untrained = make_model(DenoiseOptions(base_filters=8, init="random")).state_dict()
    assert first.keys() == untrained.keys()
    assert not torch.equal(first["correct.weight"], untrained["correct.weight"])


def test_fusion_learns_from_runs_that_the_network_never_saw(runs: list) -> None:
    model = make_model(DenoiseOptions(base_filters=8, init="random")).eval()
    run, again = (draw_fusion_run(TINY, 0, model) for _ in range(2))
    volume = 1
    estimates = [estimate.float() for estimate in run.context.of_volume(volume)]
    assert all(torch.equal(a, b) for a, b in zip(estimates, again.context.of_volume(volume), strict=True))
    assert all(
        run.mask_xyz.shape != other.mask_xyz.shape or not torch.equal(run.mask_xyz, other.mask_xyz)
        for other in runs
    )
    squares = [float((estimate - run.target_vn[volume].float()).square().mean()) for estimate in estimates]
    mean, measured, predicted, pca = squares
    assert mean < min(predicted, pca) < max(predicted, pca) < measured
    # a single b=0, which nothing predicts: its local PCA stands in for what it lacks
    mean_n, measured_n, predicted_n, pca_n = run.context.of_volume(0)
    assert torch.equal(mean_n, pca_n) and torch.equal(predicted_n, pca_n)
    assert not torch.equal(measured_n, pca_n)
    ratios: list[float] = []
    first = train_fusion(TINY, [run], report=lambda step, ratio: ratios.append(ratio))
    assert ratios[-1] < 0.99
    assert all(torch.equal(value, train_fusion(TINY, [run])[name]) for name, value in list(first.items())[:1])
    assert first.keys() == {FUSION + name for name in make_fusion(0).state_dict()}


def test_single_b0_learns_what_a_local_pca_leaves() -> None:
    indices = [0, 1]
    runs = [draw_single_b0_run(TINY, index) for index in indices]
    for run, index in zip(runs, indices, strict=True):
        pca_n, measured_n = run.context.of_volume(0)
        again_n = draw_single_b0_run(TINY, index).context.of_volume(0)[0]
        assert torch.equal(pca_n, again_n)
        target_n = run.target_vn[0].float()
        pca, measured = (float((n.float() - target_n).square().mean()) for n in (pca_n, measured_n))
        assert pca < measured and run.error == pytest.approx(pca, rel=1e-3)
        assert 0.8 < measured < 1.2, "the noise of the volume itself"
    ratios: list[float] = []
    first = train_single_b0(TINY, runs, report=lambda step, ratio: ratios.append(ratio))
    assert ratios[-1] < 0.99
    assert first.keys() == {SINGLE_B0 + name for name in make_fusion(0, SINGLE_B0).state_dict()}
    again = train_single_b0(TINY, runs)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_training_that_diverged_is_not_written(runs: list) -> None:
    """20,000 steps at a rate of 0.006 did so, and ended as weights 764 times worse than none."""
    with pytest.raises(UsageError, match=r"diverged: at step 30 .* times") as caught:
        train_weights(dataclasses.replace(TINY, steps=30, learning_rate=0.1), runs)
    assert caught.value.hint == "lower the learning rate, which is 0.1"


def test_a_run_of_ones_own_is_its_own_target() -> None:
    rng = np.random.default_rng(3)
    gradients = make_protocol(2, {1000.0: 10}, rng)
    phantom = simulate_phantom(gradients=gradients, seed=3, shape=(20, 22, 16))
    noisy, _ = add_noise(phantom.clean_xyzv, sigma=b0_signal(phantom) / 15, rng=rng)
    run = measured_run(noisy, phantom.mask_xyz, gradients, TINY)
    assert run.target_vn is run.context.snr_vn
    assert 0 <= run.error < 1.5, (
        "what is left of the difference to the measured volumes once the noise is taken off"
    )


def test_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("steps = 5\nsnr = [10, 20]\n")
    assert read_pretraining_config(file) == PretrainingConfig(steps=5, snr=(10.0, 20.0))
    file.write_text("stepps = 5\n")
    with pytest.raises(UsageError, match="unknown key stepps"):
        read_pretraining_config(file)
    file.write_text('steps = "many"\n')
    for text, said in (
        ('steps = "many"', "steps = 'many': must be of type int"),
        ("steps = 10.7", "steps = 10.7: must be of type int"),
        ('model = "multiscal"', "model = 'multiscal': must be one of 'multiscale', 'denoiser'"),
        ('loss = "l2"', "loss = 'l2': must be one of"),
        ("snr = [10]", "must be 2 values"),
    ):
        file.write_text(f"{text}\n")
        with pytest.raises(UsageError, match=re.escape(said)):
            read_pretraining_config(file)
    with pytest.raises(InputOutputError, match=r"b\.toml"):
        read_pretraining_config(tmp_path / "b.toml")


def test_command_writes_weights_that_init_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        "base_filters = 8\nbatch_size = 2\npatch_size = 12\nfusion_runs = 1\nfusion_steps = 2\nlearning_rate = 0.0001\n"
        "single_b0_runs = 1\nsingle_b0_steps = 2\n"
    )
    out = tmp_path / "new" / "mine.pt"
    code = main(["train-weights", str(out), "--config-file", str(config), "--n-runs", "1", "--steps", "3"])
    assert code == 0 and "done" in capsys.readouterr().out
    make_model(DenoiseOptions(base_filters=8, init=str(out)))
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["SimulatedRuns"] == 1 and card["Configuration"]["steps"] == 3
    assert list(card["ErrorOverBlindBase"]) == ["3"] and list(card["FusionErrorOverMean"]) == ["2"]
    assert list(card["SingleB0ErrorOverLocalPCA"]) == ["2"]
    names = set(torch.load(out, weights_only=True))
    assert all(any(name.startswith(prefix) for name in names) for prefix in (FUSION, SINGLE_B0))
    assert sorted(p.name for p in out.parent.iterdir()) == ["mine.json", "mine.pt"]


def test_a_place_that_cannot_be_written_is_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["train-weights", str(tmp_path / "file" / "mine.pt")]) == 74
    assert "mine.pt: cannot be written" in capsys.readouterr().err
    for name in (tmp_path, tmp_path / "mine.json"):
        assert main(["train-weights", str(name)]) == 64
        assert f"{name}: expected a name for the weights" in capsys.readouterr().err


def test_command_needs_something_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-weights", str(tmp_path / "a.pt"), "--n-runs", "0"]) == 64
    assert "at least one step and one run" in capsys.readouterr().err
    assert main(["train-weights", str(tmp_path / "a.pt"), "--random-seed", "-1"]) == 64
    assert "a seed of 0 or more" in capsys.readouterr().err


def test_shipped_weights_are_what_their_card_says() -> None:
    path = shipped_weights(DenoiseOptions())
    weights = torch.load(path, weights_only=True)
    card = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size < 1_000_000
    assert card["Weights"] == sum(value.numel() for value in weights.values())
    config = read_pretraining_config(path.with_suffix(".toml"))
    assert json.loads(json.dumps(dataclasses.asdict(config))) == card["Configuration"]


@pytest.mark.parametrize("snr", [10, 25])
def test_shipped_weights_help_on_a_brain_that_made_none_of_them(snr: float) -> None:
    rng = np.random.default_rng(11)
    gradients = make_protocol(2, {1000.0: 24}, rng)
    phantom = simulate_phantom(gradients=gradients, seed=11, shape=(30, 34, 20), voxel_size=2.5)
    noisy, sigma = add_noise(phantom.clean_xyzv, sigma=b0_signal(phantom) / snr, rng=rng)
    errors = {}
    for init in ("pretrained", "random"):
        options = DenoiseOptions(init=init, max_steps=0, blend=False)
        found = denoise(noisy, gradients, phantom.mask_xyz, options, sigma_xyz=sigma, device="cpu")
        dwi = (found.dwi_xyzv - phantom.clean_xyzv)[phantom.mask_xyz][:, gradients.dwi]
        errors[init] = float(np.square(dwi).mean())
    assert errors["pretrained"] < 0.8 * errors["random"], "random weights without a step are the blind base"
