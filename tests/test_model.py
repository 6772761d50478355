"""The networks: identity at the start, any size and precision, a bounded view, use of q-space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dwmri_bidsapp.denoising.blocks import (
    BoxAverage,
    ChannelAttention,
    DetailEnhancement,
    FilmProjection,
    SinusoidalVolumeEncoder,
    convolve_to_one,
)
from dwmri_bidsapp.denoising.model import DenoiserNet, MultiScaleDetailNet

Network = MultiScaleDetailNet | DenoiserNet
Module = TypeVar("Module", bound=nn.Module)
NETWORKS: list[type[Network]] = [MultiScaleDetailNet, DenoiserNet]
PARTS = ("attention", "half-resolution", "detail", "skip")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randomise(network: Module, scale: float = 0.3, seed: int = 0) -> Module:
    """Give every weight a value, the zeroed layers too: as after training."""
    generator = _generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(
                scale * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            )
    return network


def _batch(*shape: int, channels: int = 9, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = _generator(seed)
    indices = torch.randint(0, 10, (batch, channels), generator=generator)
    return torch.randn(batch, channels, *shape, generator=generator), indices


def test_the_call_of_the_users_example() -> None:
    model = MultiScaleDetailNet(
        input_channels=9, output_channels=1, base_filters=32, num_volumes=10, use_sinusoidal_encoding=True
    )
    inputs, volume_indices = _batch(12, 12, 12)
    assert model(inputs, volume_indices).shape == (2, 1, 12, 12, 12)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_untrained_network_is_the_base(network: type[Network]) -> None:
    inputs, indices = _batch(9, 8, 11)
    for precision in (None, torch.bfloat16, torch.float16):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            output = network(base_filters=16)(inputs, indices)
        assert output.dtype == torch.float32
        assert torch.equal(output, inputs[:, :1])


def test_without_residual_the_correction_alone_is_returned() -> None:
    inputs, indices = _batch(8, 8, 8)
    whole = _randomise(MultiScaleDetailNet(base_filters=16))
    alone = _randomise(MultiScaleDetailNet(base_filters=16, residual=False))
    alone.load_state_dict(whole.state_dict())
    torch.testing.assert_close(whole(inputs, indices) - inputs[:, :1], alone(inputs, indices))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 11, 13), (8, 9, 16), (1, 1, 1), (2, 3, 1), (5, 7, 4)])
def test_any_size_gives_its_own_shape_and_finite_values(
    network: type[Network], shape: tuple[int, ...]
) -> None:
    inputs, indices = _batch(*shape)
    output = _randomise(network(base_filters=8))(inputs, indices)
    assert output.shape == (2, 1, *shape)
    assert output.isfinite().all()
    assert not torch.equal(output, inputs[:, :1])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 2), (5, 1), (20, 3)])
def test_any_number_of_channels(network: type[Network], channels: int, outputs: int) -> None:
    inputs, indices = _batch(8, 8, 8, channels=channels)
    output = network(channels, outputs, 8)(inputs, indices)
    assert torch.equal(output, inputs[:, :outputs])


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_learns(network: type[Network]) -> None:
    inputs, indices = _batch(9, 8, 10)
    model = _randomise(network(base_filters=16))
    model(inputs, indices).square().mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def _crop(inputs: Tensor, start: int, stop: int) -> Tensor:
    return inputs[:, :, start:stop, start:stop, start:stop]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_crop_at_even_indices_gets_the_answer_of_the_whole(network: type[Network]) -> None:
    inputs, indices = _batch(46, 46, 46, batch=1)
    model = _randomise(network(base_filters=4)).eval()
    reach = model.reach
    whole, start, stop = model(inputs, indices), 2, 45
    part = model(_crop(inputs, start, stop), indices)
    inner = slice(reach, stop - start - reach)
    same = slice(start + reach, stop - reach)
    assert part[..., inner, inner, inner].numel() > 100
    torch.testing.assert_close(
        part[..., inner, inner, inner], whole[..., same, same, same], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "network", [*NETWORKS, *(partial(MultiScaleDetailNet, leave_out=[p]) for p in PARTS)]
)
def test_reach_is_the_distance_of_the_furthest_input_that_matters(network: Callable[..., Network]) -> None:
    model = _randomise(network(base_filters=4)).double()
    size = 2 * model.reach + 6
    furthest = 0
    for axis, at in itertools.product(range(3), (size // 2, size // 2 + 1)):
        shape = [6, 6, 6]
        shape[axis] = size
        inputs = torch.randn(1, 9, *shape, dtype=torch.float64, generator=_generator(axis)).requires_grad_()
        output = model(inputs, torch.zeros(1, 9))
        output.movedim(2 + axis, 0)[at].sum().backward()
        assert inputs.grad is not None
        seen = inputs.grad.movedim(2 + axis, 0).flatten(1).abs().sum(1).nonzero().flatten()
        furthest = max(furthest, int((seen - at).abs().max()))
    assert furthest == model.reach


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_left_out_has_no_say(part: str) -> None:
    """Its weights get no gradient (or do not exist); the same weights with it give another answer."""
    inputs, indices = _batch(8, 8, 8)
    whole = _randomise(MultiScaleDetailNet(base_filters=4))
    rest = MultiScaleDetailNet(base_filters=4, leave_out=[part])
    gain = rest.detail.gain.clone()
    rest.load_state_dict(whole.state_dict(), strict=False)
    if part == "detail":
        rest.detail.gain.copy_(gain)
    answer = rest(inputs, indices)
    assert not torch.allclose(answer, whole(inputs, indices), atol=1e-3)
    answer.sum().backward()
    silent = {name.split(".")[0] for name, weights in rest.named_parameters() if weights.grad is None}
    expected = {
        "attention": set(),
        "half-resolution": {"widen", "coarse_first", "coarse_second", "narrow"},
        "detail": {"detail"},
        "skip": set(),
    }
    assert silent == expected[part]
    assert (rest.attention is None) == (part in ("attention", "half-resolution"))


def test_without_skips_full_resolution_is_lost() -> None:
    """What alternates within blocks of two voxels does not pass the half-resolution path."""
    inputs, indices = _batch(8, 8, 8)
    checkered = torch.ones(8).cumsum(0) % 2 - 0.5
    finer = inputs.clone()
    finer[:, 1:] += 5 * checkered[:, None, None]

    def change(model: MultiScaleDetailNet) -> float:
        # linear, so that the mean over a block knows nothing of what alternates in it
        model.stem.weight.data[:, :, [0, 2]] = model.stem.weight.data[..., [0, 2], :] = 0
        model.stem.weight.data[..., [0, 2]] = 0
        model.stem.bias.data.fill_(200.0)
        return float((model(finer, indices) - model(inputs, indices)).detach().abs().max())

    whole = _randomise(MultiScaleDetailNet(base_filters=4))
    rest = _randomise(MultiScaleDetailNet(base_filters=4, leave_out=["skip"]))
    assert change(rest) < 1e-2 * change(whole)


def test_samples_of_a_batch_do_not_touch_each_other() -> None:
    inputs, indices = _batch(9, 10, 8, batch=3)
    model = _randomise(MultiScaleDetailNet(base_filters=8))
    alone = torch.cat([model(inputs[i : i + 1], indices[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(inputs, indices), alone, atol=1e-5, rtol=1e-5)


def test_memory_layout_of_the_inputs_does_not_matter() -> None:
    inputs, indices = _batch(8, 9, 10)
    model = _randomise(MultiScaleDetailNet(base_filters=8))
    torch.testing.assert_close(
        model(inputs.contiguous(memory_format=torch.channels_last_3d), indices), model(inputs, indices)
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.bfloat16, 0.04), (torch.float16, 0.005)])
def test_mixed_precision_agrees_with_float32(
    network: type[Network], precision: torch.dtype, tolerance: float
) -> None:
    inputs, indices = _batch(9, 12, 8)
    model = _randomise(network(base_filters=16))
    exact = model(inputs, indices)
    with torch.autocast("cpu", precision):
        rounded = model(inputs, indices)
    size = (exact - inputs[:, :1]).square().mean().sqrt()
    assert 0 < (rounded - exact).square().mean().sqrt() < tolerance * size


@pytest.mark.parametrize("network", NETWORKS)
def test_float16_training_with_a_scaler_lowers_the_loss(network: type[Network]) -> None:
    inputs, indices = _batch(8, 8, 8)
    torch.manual_seed(0)
    model = network(base_filters=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = (model(inputs, indices) - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 1024.0
    assert losses[-1] < 0.8 * losses[0]


def test_half_and_bfloat16_weights_work_without_autocast() -> None:
    inputs, indices = _batch(8, 9, 8)
    for dtype in (torch.float16, torch.bfloat16):
        model = _randomise(MultiScaleDetailNet(base_filters=16)).to(dtype)
        output = model(inputs.to(dtype), indices)
        assert output.dtype == dtype
        assert output.isfinite().all()


def test_the_whole_network_compiles_to_one_graph() -> None:
    inputs, indices = _batch(9, 8, 8)
    model = _randomise(MultiScaleDetailNet(base_filters=8))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs, indices), model(inputs, indices), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_holds_what_is_learnt_and_restores_it() -> None:
    inputs, indices = _batch(8, 8, 8)
    model = _randomise(MultiScaleDetailNet(base_filters=16, coordinates_per_channel=1))
    weights = model.state_dict()
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())
    other = MultiScaleDetailNet(base_filters=16)
    other.load_state_dict(weights)
    assert torch.equal(other(inputs, indices), model(inputs, indices))


def test_weights_at_sixteen_filters_stay_near_a_hundred_thousand() -> None:
    model = MultiScaleDetailNet(base_filters=16, coordinates_per_channel=2)
    assert 80_000 < sum(p.numel() for p in model.parameters()) < 110_000


def test_work_per_voxel_stays_below_forty_thousand_products() -> None:
    model = MultiScaleDetailNet(base_filters=16, coordinates_per_channel=2)
    work = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        work.append(output[:, 0].numel() * layer.weight.numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 9, 16, 16, 16), torch.zeros(1, 9, 2))
    assert 10_000 < sum(work) / 16**3 < 40_000


def test_every_dimension_of_the_encoding_varies_over_indices_and_angles() -> None:
    encoder = SinusoidalVolumeEncoder(32)
    for coordinates in (torch.arange(10), torch.linspace(0, 1, 11), torch.linspace(0, 3, 31)):
        encoded = encoder(coordinates)
        assert encoded.shape == (len(coordinates), 32)
        assert (encoded.std(dim=0) > 1e-3).all()


def test_the_encoding_is_sines_and_cosines_of_geometric_wavelengths() -> None:
    encoder = SinusoidalVolumeEncoder(8, shortest_wavelength=0.5, longest_wavelength=32.0)
    wavelengths = [32.0, 8.0, 2.0, 0.5]
    x = 0.3
    expected = [f(2 * math.pi * x / w) for f in (math.sin, math.cos) for w in wavelengths]
    torch.testing.assert_close(encoder(torch.tensor(x)), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_the_encoding_keeps_float32_under_autocast_and_tells_near_coordinates_apart() -> None:
    encoder = SinusoidalVolumeEncoder(16)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encoder(torch.tensor([0.90, 0.905]))
    assert encoded.dtype == torch.float32
    assert (encoded[0] - encoded[1]).abs().max() > 0.01


def test_modulation_starts_as_one_and_zero_and_then_depends_on_every_coordinate() -> None:
    film = FilmProjection(6, (4, 3))
    coordinates = torch.rand(2, 6, generator=_generator()).requires_grad_()
    for scale, shift in film(coordinates):
        assert (scale == 1).all()
        assert (shift == 0).all()
    _randomise(film)
    stages = film(coordinates)
    assert [tuple(scale.shape) for scale, _ in stages] == [(2, 4, 1, 1, 1), (2, 3, 1, 1, 1)]
    for parameter in itertools.chain(*stages):
        (slope,) = torch.autograd.grad(parameter.sum(), coordinates, retain_graph=True)
        assert (slope != 0).all()


@pytest.mark.parametrize("count", [1, 2])
def test_each_coordinate_changes_the_correction_but_only_of_a_trained_network(count: int) -> None:
    inputs, _ = _batch(8, 8, 8, batch=1)
    model = MultiScaleDetailNet(base_filters=8, coordinates_per_channel=count)
    shape = (1, 9) if count == 1 else (1, 9, count)
    coordinates = torch.rand(shape, generator=_generator())
    assert torch.equal(model(inputs, coordinates), model(inputs, coordinates + 1))
    _randomise(model)
    before = model(inputs, coordinates)
    for i in range(coordinates.numel()):
        moved = coordinates.clone()
        moved.view(-1)[i] += 0.3
        assert (model(inputs, moved) - before).abs().max() > 1e-4


def test_integer_and_real_indices_of_the_same_value_are_the_same() -> None:
    inputs, indices = _batch(8, 8, 8)
    model = _randomise(MultiScaleDetailNet(base_filters=8))
    assert torch.equal(model(inputs, indices), model(inputs, indices.double()))


def test_without_encoding_indices_are_ignored() -> None:
    inputs, indices = _batch(8, 8, 8)
    model = _randomise(MultiScaleDetailNet(base_filters=8, use_sinusoidal_encoding=False))
    assert torch.equal(model(inputs, indices), model(inputs))
    plain = _randomise(DenoiserNet(base_filters=8))
    assert torch.equal(plain(inputs, indices), plain(inputs))


def _train(model: nn.Module, steps: int, batch: Callable[[int], tuple[Tensor, Tensor, Tensor]]) -> float:
    """Mean loss of the last quarter of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for step in range(steps):
        inputs, coordinates, target = batch(step)
        loss = functional.mse_loss(model(inputs, coordinates), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-steps // 4 :]) / (steps // 4)


@pytest.mark.parametrize("encoding", [True, False])
def test_only_the_encoding_can_tell_which_channel_to_trust(encoding: bool) -> None:
    """The target is the base plus or minus a channel; which one, only the coordinates say."""

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = _generator(step)
        inputs = torch.randn(8, 2, 6, 6, 6, generator=generator)
        place = torch.randint(0, 2, (8,), generator=generator)
        sign = (2.0 * place - 1)[:, None, None, None, None]
        return inputs, torch.stack([place, place], dim=1), inputs[:, :1] + sign * inputs[:, 1:]

    torch.manual_seed(0)
    model = MultiScaleDetailNet(2, 1, 8, use_sinusoidal_encoding=encoding)
    loss = _train(model, 100, batch)
    assert loss < 0.5 if encoding else loss > 0.95


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns_to_average_noise_away_from_noisy_targets(network: type[Network]) -> None:
    """Nine noisy views of one signal: averaging them leaves 1/9 of the base's noise."""

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = _generator(step)
        signal = 3 * torch.randn(4, 1, 8, 8, 8, generator=generator)
        inputs = signal + torch.randn(4, 9, 8, 8, 8, generator=generator)
        return inputs, torch.arange(9).expand(4, 9), signal + torch.randn(4, 1, 8, 8, 8, generator=generator)

    torch.manual_seed(0)
    loss = _train(network(base_filters=16), 160, batch)
    assert 1.0 < loss < 1.6, "the base alone costs 2, the best possible 1.1"


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("size", [(5, 6, 9), (1, 2, 3)])
def test_channel_attention_takes_mean_and_maximum_of_the_window_that_lies_inside(
    size: tuple[int, int, int], learns: bool
) -> None:
    attention = ChannelAttention(3, 2, window=5).requires_grad_(learns)
    _randomise(attention)
    features = torch.randn(1, 3, *size, generator=_generator())
    reduced = attention.reduce(features)
    windows = functional.pad(reduced, [2] * 6, value=float("nan"))
    for axis in (2, 3, 4):
        windows = windows.unfold(axis, 5, 1)
    mean = windows.flatten(5).nanmean(dim=5)
    highest = windows.flatten(5).nan_to_num(-100.0).amax(dim=5)
    hidden = functional.leaky_relu(mean, 0.1) + functional.leaky_relu(highest, 0.1)
    torch.testing.assert_close(attention(features), attention.expand(hidden).sigmoid())


@pytest.mark.parametrize("size", [(6, 4, 8), (5, 4, 3), (1, 1, 1)])
def test_convolution_to_one_channel_is_that_of_the_layer(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(3, 1, 3, padding=1).double()
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found, expected = convolve_to_one(features, layer), layer(features)
    torch.testing.assert_close(found, expected)
    wanted = [features, *layer.parameters()]
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((output * weights).sum(), wanted) for output in (found, expected))
    torch.testing.assert_close(*gradients)


def test_block_average_is_the_mean_of_blocks() -> None:
    features = torch.randn(2, 3, 4, 6, 8, generator=_generator())
    torch.testing.assert_close(
        BoxAverage(3, (2, 2, 2), stride=2)(features), functional.avg_pool3d(features, 2)
    )


def test_detail_enhancement_amplifies_what_differs_from_the_average_only() -> None:
    detail = DetailEnhancement(3)
    with torch.no_grad():
        detail.gain.copy_(torch.tensor([0.0, 0.5, 2.0])[None, :, None, None, None])
    features = torch.randn(1, 3, 4, 6, 2, generator=_generator())
    average = functional.avg_pool3d(features, 2)
    enhanced = detail(features, average, torch.zeros_like(average), torch.ones(()), torch.zeros(()))
    raised = average.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(functional.avg_pool3d(enhanced, 2), average)
    torch.testing.assert_close(enhanced - raised, (1 + detail.gain) * (features - raised))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiScaleDetailNet(2, 3), r"at most input_channels \(2\), found 3"),
        (lambda: DenoiserNet(2, 3), r"at most input_channels \(2\), found 3"),
        (lambda: MultiScaleDetailNet(0, 0), "at least 1, found 0, 0"),
        (lambda: MultiScaleDetailNet(num_volumes=0), "at least 1, found 0 and 1"),
        (lambda: MultiScaleDetailNet(leave_out=["skip", "half-resolution"]), "one path at least"),
        (lambda: DenoiserNet(depth=1), "depth of at least 2, found 1"),
        (lambda: SinusoidalVolumeEncoder(7), "even, positive number of dimensions, found 7"),
        (lambda: SinusoidalVolumeEncoder(8, longest_wavelength=0.1), "found 0.7 and 0.1"),
        (lambda: ChannelAttention(4, 2, window=4), "odd number of voxels, found 4"),
    ],
)
def test_impossible_networks_say_what_was_expected_and_found(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8, 8, 8), (9, 8, 8, 8), (1, 9, 8, 0, 8)])
def test_inputs_of_another_shape_say_so(network: type[Network], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected inputs of shape \(B, 9, X, Y, Z\).*found \(") as error:
        network(base_filters=4)(torch.zeros(shape), torch.zeros(1, 9))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("indices", [None, torch.zeros(1, 8), torch.zeros(2, 9), torch.zeros(1, 9, 2)])
def test_coordinates_of_another_shape_say_so(indices: Tensor | None) -> None:
    found = "none" if indices is None else str(tuple(indices.shape))
    with pytest.raises(ValueError, match="expected volume_indices of shape") as error:
        MultiScaleDetailNet(base_filters=4)(torch.zeros(1, 9, 8, 8, 8), indices)
    assert "(1, 9)" in str(error.value)
    assert str(error.value).endswith(f"found {found}")
