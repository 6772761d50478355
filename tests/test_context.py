"""The nine channels: what they are, and that the target's own measurement is in none of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.context import B0_GAIN, N_CHANNELS, N_COORDINATES, Context, build_context
from dwmri_bidsapp.denoising.model import DenoiserNet, MultiScaleDetailNet
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.simulation import make_protocol

SHAPE = (8, 7, 6)
WHOLE = (slice(0, 8), slice(0, 7), slice(0, 6))


def protocol(n_b0: int = 2) -> Gradients:
    return make_protocol(n_b0, {1000.0: 8, 2000.0: 9}, np.random.default_rng(0))


def random_run(gradients: Gradients, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Measured data and an unrelated base."""
    generator = torch.Generator().manual_seed(seed)
    shape = (gradients.n_volumes, *SHAPE)
    return tuple((30 * torch.rand(shape, generator=generator)).half() for _ in range(2))  # type: ignore[return-value]


def make_context(
    gradients: Gradients, snr: torch.Tensor, base: torch.Tensor, leave_out: Sequence[str] = ()
) -> Context:
    whole = torch.ones(SHAPE, dtype=torch.bool)
    targets = range(gradients.n_volumes)
    return build_context(snr.flatten(1), base.flatten(1), whole, gradients, targets, leave_out)


@pytest.mark.parametrize("n_b0", [1, 2, 4])
def test_own_measurement_is_in_no_channel(n_b0: int) -> None:
    """Only float rounding of "sum of the shell minus own" is left; with the base given, nothing else."""
    gradients = protocol(n_b0)
    snr, base = random_run(gradients)
    before = make_context(gradients, snr, base)
    for v in range(gradients.n_volumes):
        changed = snr.clone()
        changed[v, 3, 4, 2] += 200
        after = make_context(gradients, changed, base)
        one, other = (c.inputs([v], [WHOLE])[0] for c in (before, after))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
        exact = [c for c in range(N_CHANNELS) if c not in (1, 2)]
        assert torch.equal(one[:, exact], other[:, exact])


@pytest.mark.parametrize("network", [MultiScaleDetailNet, DenoiserNet])
def test_prediction_with_a_given_base_does_not_depend_on_the_target_volume_at_all(network: type) -> None:
    """Random weights in all layers; the whole target volume is replaced by other numbers."""
    gradients = protocol()
    snr, base = random_run(gradients)
    torch.manual_seed(1)
    extra = {"coordinates_per_channel": N_COORDINATES} if network is MultiScaleDetailNet else {}
    model = network(N_CHANNELS, 1, 8, **extra).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for v in (0, 5, gradients.n_volumes - 1):
        changed = snr.clone()
        changed[v] = 200 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(9)).half()
        with torch.no_grad():
            one, other, elsewhere = (
                model(*make_context(gradients, data, base).inputs([u], [WHOLE]))
                for data, u in ((snr, v), (changed, v), (changed, (v + 1) % gradients.n_volumes))
            )
            plain = model(
                *make_context(gradients, snr, base).inputs([(v + 1) % gradients.n_volumes], [WHOLE])
            )
        assert float((one - base[v].float() * make_context(gradients, snr, base).gain(v)).abs().max()) > 0.1
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
        if gradients.shell[v] == gradients.shell[(v + 1) % gradients.n_volumes]:
            assert float((plain - elsewhere).abs().max()) > 0.1, "other targets of the shell must see it"


def test_channels_are_what_the_docstring_says() -> None:
    gradients = protocol(3)
    snr, base = random_run(gradients)
    context = make_context(gradients, snr, base)
    box = (slice(1, 5), slice(2, 6), slice(0, 4))
    data, shell = snr.float(), gradients.shell
    for v in range(gradients.n_volumes):
        inputs = context.inputs([v], [box])[0][0]
        gain = B0_GAIN if shell[v] == 0 else 1.0
        others = [u for u in range(gradients.n_volumes) if shell[u] == shell[v] and u != v]
        b0 = [u for u in range(gradients.n_volumes) if shell[u] == 0 and u != v]
        torch.testing.assert_close(inputs[0], gain * base[v].float()[box])
        torch.testing.assert_close(inputs[1], gain * data[others].mean(0)[box], atol=1e-4, rtol=0)
        torch.testing.assert_close(inputs[2], B0_GAIN * data[b0].mean(0)[box], atol=1e-4, rtol=0)
        for channel, u in enumerate(context.neighbours[v].tolist(), start=3):
            assert u != v
            torch.testing.assert_close(inputs[channel], context.gain(u) * data[u][box])


def test_target_is_the_measurement_on_the_networks_scale() -> None:
    gradients = protocol()
    snr, base = random_run(gradients)
    context = make_context(gradients, snr, base)
    b0, dwi = int(np.flatnonzero(gradients.b0)[0]), int(np.flatnonzero(gradients.dwi)[0])
    target = context.target([b0, dwi], [WHOLE, WHOLE])
    assert target.shape == (2, 1, *SHAPE)
    torch.testing.assert_close(target[0, 0], B0_GAIN * snr[b0].float())
    torch.testing.assert_close(target[1, 0], snr[dwi].float())


def test_coordinates_say_b_and_the_cosine_to_the_target() -> None:
    gradients = protocol()
    snr, base = random_run(gradients)
    context = make_context(gradients, snr, base)
    v = int(np.flatnonzero(gradients.bvals > 1500)[0])
    coordinates = context.inputs([v], [WHOLE])[1][0].numpy()
    assert coordinates.shape == (N_CHANNELS, N_COORDINATES)
    np.testing.assert_allclose(coordinates[:3], [[2.0, 1.0], [2.0, 0.5], [0.0, 0.0]], atol=1e-6)
    near = context.neighbours[v].numpy()
    np.testing.assert_allclose(coordinates[3:, 0], 2.0)
    np.testing.assert_allclose(
        coordinates[3:, 1], np.abs(gradients.bvecs[near] @ gradients.bvecs[v]), atol=1e-6
    )


def test_lone_volume_of_a_shell_has_its_base_for_a_mean() -> None:
    """No other volume, no mean: the base stands in, and no own value."""
    gradients = protocol(1)
    snr, base = random_run(gradients)
    v = int(np.flatnonzero(gradients.b0)[0])
    inputs = make_context(gradients, snr, base).inputs([v], [WHOLE])[0][0]
    assert torch.isfinite(inputs).all()
    torch.testing.assert_close(inputs[1], B0_GAIN * base[v].float())
    torch.testing.assert_close(inputs[2], inputs[1])


def test_left_out_base_and_context_are_replaced() -> None:
    gradients = protocol()
    snr, base = random_run(gradients)
    targets, (whole, _) = [0, 5], make_context(gradients, snr, base).inputs([0, 5], [WHOLE, WHOLE])
    for part, source, replaced in (("base", 1, [0]), ("context", 0, list(range(1, N_CHANNELS)))):
        left = make_context(gradients, snr, base, leave_out=[part])
        found, _ = left.inputs(targets, [WHOLE, WHOLE])
        kept = [c for c in range(N_CHANNELS) if c not in replaced]
        assert torch.equal(found[:, kept], whole[:, kept])
        assert torch.equal(found[:, replaced], whole[:, [source]].expand(-1, len(replaced), -1, -1, -1))


def test_left_out_q_space_leaves_the_number_of_the_volume() -> None:
    gradients = protocol()
    left = make_context(gradients, *random_run(gradients), leave_out=["q-space"])
    places = left.coordinates_vck[7]
    assert places[:3, 0].tolist() == [7, 7, 7]
    assert places[3:, 0].tolist() == left.neighbours[7].tolist()
    assert not places[:, 1].any()
