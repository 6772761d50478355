"""The training loop: what it may see, and that it resumes, stops, diverges and accumulates as it says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising import train as module
from dwmri_bidsapp.denoising.blind import blind_local_pca
from dwmri_bidsapp.denoising.context import Context, build_context
from dwmri_bidsapp.denoising.denoise import make_model
from dwmri_bidsapp.denoising.hardware import Precision
from dwmri_bidsapp.denoising.train import PatchSampler, Training, split_heldout, train
from dwmri_bidsapp.options import DenoiseOptions
from dwmri_bidsapp.simulation import make_protocol

FLOAT32 = Precision(None)
QUICK = DenoiseOptions(
    init="random",
    model="denoiser",
    base_filters=4,
    max_steps=8,
    batch_size=2,
    patch_size=8,
    learning_rate=3e-3,
    loss="mse",
)
SHAPE = (18, 18, 12)


def tiny_run(seed: int = 0, b1000: int = 7) -> tuple[Context, torch.Tensor]:
    """Smooth signal of low rank, unit noise, float16, with its true blind base."""
    gradients = make_protocol(2, {1000.0: b1000}, np.random.default_rng(0))
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(0, 4, n) for n in SHAPE), indexing="ij")
    maps = np.stack([np.sin(x + y), np.cos(z - x), (x > 2).astype(float)])
    clean = 15 + np.einsum("rv,rxyz->vxyz", 4 * rng.normal(size=(3, gradients.n_volumes)), maps)
    snr = torch.from_numpy(clean + rng.normal(size=clean.shape)).half()
    mask = torch.from_numpy((x - 2) ** 2 + (y - 2) ** 2 < 5)
    snr = snr[:, mask]
    return build_context(
        snr, blind_local_pca(snr, mask).base_vn, mask, gradients, range(gradients.n_volumes)
    ), mask


@pytest.fixture(scope="module")
def run() -> tuple[Context, torch.Tensor]:
    return tiny_run()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate every second step, so that few steps show everything."""
    monkeypatch.setattr(module, "EVALUATE_EVERY", 2)


def weights_of(
    options: DenoiseOptions, run: tuple[Context, torch.Tensor], **keywords: object
) -> tuple[dict, Training]:
    model = make_model(options)
    record = train(model, *run, options, FLOAT32, **keywords)  # type: ignore[arg-type]
    return model.state_dict(), record


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(record: Training, name: str = "heldout_loss") -> list[float]:
    return [row[name] for row in record.history]


def test_heldout_cubes_are_about_one_in_twenty() -> None:
    mask = torch.ones((90, 84, 77), dtype=torch.bool)
    mask[:10] = False
    heldout = split_heldout(mask, torch.Generator().manual_seed(0))
    assert not bool((heldout & ~mask).any())
    assert float(heldout.sum() / mask.sum()) == pytest.approx(0.05, abs=0.015)
    cube = heldout[12:18, :6, :6]
    assert bool(cube.all()) or not bool(cube.any())


def test_tiny_mask_is_watched_as_a_whole() -> None:
    mask = torch.zeros((6, 6, 6), dtype=torch.bool)
    mask[2, 3, 3] = True
    found = split_heldout(mask, torch.Generator().manual_seed(0))
    assert torch.equal(found, mask)


@pytest.mark.parametrize("loss", ["mse", "edge-aware", "l1"])
def test_heldout_measurements_are_in_no_training_loss(
    run: tuple[Context, torch.Tensor], loss: Literal["mse", "edge-aware", "l1"]
) -> None:
    """Other numbers as *targets* inside the held-out cubes (inputs kept): losses and weights stay to the bit."""
    context, mask = run
    options = dataclasses.replace(QUICK, loss=loss)
    heldout = split_heldout(mask, torch.Generator().manual_seed(options.random_seed))
    assert 0 < int(heldout.sum()) < int(mask.sum())

    class OtherTargets(Context):
        def target(self, volumes, boxes):  # type: ignore[no-untyped-def]
            target = super().target(volumes, boxes)
            return target + 100 * torch.stack([heldout[box][None] for box in boxes])

    fields = {f.name: getattr(context, f.name) for f in dataclasses.fields(Context)}
    states = []
    for data in (context, OtherTargets(**fields)):
        model = make_model(options)
        state = module._State(model, data, mask, options, FLOAT32, None)
        states.append(([state.step() for _ in range(3)], model.state_dict(), state.evaluate(0.0)))
    assert states[0][0] == states[1][0]
    assert same(states[0][1], states[1][1])
    assert states[1][2] > states[0][2] + 1000, "the held-out loss must see them"


def test_patches_lie_in_the_grid_and_hold_their_centre(run: tuple[Context, torch.Tensor]) -> None:
    context, mask = run
    sampler = PatchSampler(context, mask, 14, torch.Generator().manual_seed(1))
    volumes, boxes = sampler.draw(200)
    assert set(volumes) == set(range(9))
    for box in boxes:
        assert [s.stop - s.start for s in box] == [14, 14, 12]
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(box, SHAPE, strict=True))
        assert bool(mask[box].any())


@pytest.mark.parametrize("schedule", ["one-cycle", "plateau"])
def test_resumed_training_is_the_uninterrupted_one_to_the_bit(
    run: tuple[Context, torch.Tensor], tmp_path: Path, schedule: Literal["one-cycle", "plateau"]
) -> None:
    options = dataclasses.replace(QUICK, schedule=schedule)
    expected, whole = weights_of(options, run)

    class Interrupted(Exception):
        pass

    def stop(step: int, n_steps: int, heldout: float) -> None:
        if step == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        weights_of(options, run, checkpoint_dir=tmp_path, progress=stop)
    seen = []
    found, resumed = weights_of(
        options, run, checkpoint_dir=tmp_path, progress=lambda step, n, loss: seen.append(step)
    )
    assert seen == [6, 8], "it must go on after step 4, the last that was kept"
    assert same(expected, found)
    assert losses(resumed) == losses(whole)
    assert losses(resumed, "step") == [0, 2, 4, 6, 8]
    assert resumed.stop_reason == "max-steps" and resumed.steps == 8


def test_finished_training_is_not_done_again(run: tuple[Context, torch.Tensor], tmp_path: Path) -> None:
    expected, _ = weights_of(QUICK, run, checkpoint_dir=tmp_path)
    seen: list[int] = []
    found, again = weights_of(QUICK, run, checkpoint_dir=tmp_path, progress=lambda *a: seen.append(a[0]))
    assert seen == [] and again.steps == 8
    assert same(expected, found)


def test_a_checkpoint_that_was_cut_short_is_made_anew(
    run: tuple[Context, torch.Tensor], tmp_path: Path
) -> None:
    expected, _ = weights_of(QUICK, run, checkpoint_dir=tmp_path)
    (checkpoint,) = tmp_path.glob("*.pt")
    whole = checkpoint.read_bytes()
    for n_bytes in (0, 10, len(whole) // 2):
        checkpoint.write_bytes(whole[:n_bytes])
        found, _ = weights_of(QUICK, run, checkpoint_dir=tmp_path)
        assert same(expected, found)


@pytest.mark.parametrize("change", ["options", "data"])
def test_checkpoint_of_something_else_is_not_used(
    run: tuple[Context, torch.Tensor], tmp_path: Path, change: str
) -> None:
    weights_of(QUICK, run, checkpoint_dir=tmp_path)
    options = dataclasses.replace(QUICK, random_seed=5) if change == "options" else QUICK
    data = tiny_run(seed=9) if change == "data" else run
    expected, _ = weights_of(options, data)
    found, _ = weights_of(options, data, checkpoint_dir=tmp_path)
    assert same(expected, found)


def test_a_checkpoint_of_another_number_format_is_not_used(
    run: tuple[Context, torch.Tensor], tmp_path: Path
) -> None:
    """A job that goes on where 16 bits mean another format, whose loss is scaled; nor one of other directions."""
    weights_of(QUICK, run, checkpoint_dir=tmp_path)
    record = train(make_model(QUICK), *run, QUICK, Precision(torch.float16), checkpoint_dir=tmp_path)
    assert record.steps == QUICK.max_steps
    context, mask = run
    other = dataclasses.replace(context, coordinates_vck=context.coordinates_vck.flip(0))
    expected, _ = weights_of(QUICK, (other, mask))
    found, _ = weights_of(QUICK, (other, mask), checkpoint_dir=tmp_path)
    assert same(expected, found)


def test_it_stops_when_the_heldout_loss_does_not_fall(
    run: tuple[Context, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2)
    monkeypatch.setattr(module, "IMPROVEMENT", 0.9)
    _, record = weights_of(dataclasses.replace(QUICK, max_steps=40), run)
    assert record.stop_reason == "converged"
    assert record.steps == 4 and record.best_step == 0


@pytest.mark.parametrize("learning_rate", [1e30, 1e8])
def test_diverged_training_ends_with_the_best_finite_weights(
    run: tuple[Context, torch.Tensor], learning_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 100)
    options = dataclasses.replace(QUICK, max_steps=60, learning_rate=learning_rate)
    found, record = weights_of(options, run)
    assert record.stop_reason == "diverged"
    assert record.steps < 60
    assert same(found, make_model(options).state_dict()), "nothing was better than the start"
    assert min(losses(record)) == losses(record)[0]


def test_two_half_batches_are_one_batch(
    run: tuple[Context, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same eight draws the gradients are the same (same number of mask voxels in every patch)."""
    context, mask = run
    # clipping would hide a gradient of another scale
    monkeypatch.setattr(module, "CLIP_NORM", 1e9)
    everywhere = torch.ones_like(mask)
    draws = PatchSampler(context, everywhere, 8, torch.Generator().manual_seed(3)).draw(8)
    gradients = []
    for batch, parts in ((8, 1), (4, 2)):
        options = dataclasses.replace(QUICK, batch_size=batch, accumulation_steps=parts)
        model = make_model(options)
        torch.nn.init.normal_(
            model.state_dict()["correct.weight"], std=0.1, generator=torch.Generator().manual_seed(0)
        )
        state = module._State(model, context, mask, options, FLOAT32, None)
        state.training_mask = everywhere
        pieces = iter([(draws[0][i : i + batch], draws[1][i : i + batch]) for i in range(0, 8, batch)])
        monkeypatch.setattr(state.sampler, "draw", lambda n, pieces=pieces: next(pieces))
        state.step()
        assert next(pieces, None) is None
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-3


def test_plateau_halves_the_rate_when_the_loss_does_not_fall(
    run: tuple[Context, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMPROVEMENT", 0.9)
    _, record = weights_of(dataclasses.replace(QUICK, schedule="plateau"), run)
    np.testing.assert_allclose(
        np.array(losses(record, "learning_rate")) / QUICK.learning_rate, [1, 0.5, 0.25, 0.125, 0.0625]
    )


def test_one_cycle_rises_and_falls() -> None:
    rates = [module.one_cycle(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(0.01)


def test_history_and_time(run: tuple[Context, torch.Tensor]) -> None:
    _, record = weights_of(QUICK, run)
    for row in record.history:
        assert list(row) == ["step", "learning_rate", "training_loss", "heldout_loss", "seconds"]
    assert math.isnan(record.history[0]["training_loss"])
    assert all(math.isfinite(value) for row in record.history[1:] for value in row.values())
    assert losses(record, "seconds") == sorted(losses(record, "seconds"))
    assert 0 < record.loading_seconds < record.training_seconds


def test_no_steps_keeps_the_weights(run: tuple[Context, torch.Tensor], tmp_path: Path) -> None:
    options = dataclasses.replace(QUICK, max_steps=0)
    found, record = weights_of(options, run, checkpoint_dir=tmp_path)
    assert same(found, make_model(options).state_dict())
    assert record.stop_reason == "no-steps" and len(record.history) == 1


def test_log_can_be_read_by_tensorboard(run: tuple[Context, torch.Tensor], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, record = weights_of(QUICK, run, checkpoint_dir=tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"learning_rate", "training_loss", "heldout_loss"}
    written = events.Scalars("heldout_loss")
    assert [event.step for event in written] == [0, 2, 4, 6, 8]
    np.testing.assert_allclose([event.value for event in written], losses(record), rtol=1e-5)


def test_heldout_loss_falls_towards_the_noise(
    run: tuple[Context, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose base is worse than it need be learns to mend it: 1 is what the noise alone leaves."""
    monkeypatch.setattr(module, "EVALUATE_EVERY", 10)
    context, mask = run
    poor = dataclasses.replace(context, base_vn=context.base_vn + 1.5)
    options = dataclasses.replace(QUICK, max_steps=60, batch_size=4, base_filters=8, learning_rate=1e-2)
    _, record = weights_of(options, (poor, mask))
    assert losses(record)[0] > 3.0
    assert min(losses(record)) < 0.6 * losses(record)[0]
