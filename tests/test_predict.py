"""Tiles: they cover the mask once, and do not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.context import N_CHANNELS, N_COORDINATES, build_context
from dwmri_bidsapp.denoising.hardware import Precision
from dwmri_bidsapp.denoising.model import DenoiserNet, MultiScaleDetailNet
from dwmri_bidsapp.denoising.predict import predict_volume, tiles_of
from dwmri_bidsapp.simulation import make_protocol


def odd_mask(shape: tuple[int, int, int]) -> torch.Tensor:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    mask = torch.from_numpy((grid**2).sum(axis=0) < 0.9)
    mask[0, 0, 0] = True
    return mask


@pytest.mark.parametrize("shape", [(31, 17, 40), (5, 5, 5), (1, 9, 33)])
@pytest.mark.parametrize("tile", [8, 16, 96])
def test_tiles_cover_the_mask_exactly_once(shape: tuple[int, int, int], tile: int) -> None:
    mask = odd_mask(shape)
    count = torch.zeros(shape, dtype=torch.int64)
    for seen, kept in tiles_of(mask, tile, halo=5):
        count[kept] += 1
        for s, k, n in zip(seen, kept, shape, strict=True):
            assert k.stop - k.start <= tile
            assert s.start % 2 == 0 and 0 <= s.start <= max(0, k.start - 5)
            assert min(n, k.stop + 5) <= s.stop <= min(n, k.stop + 6)
            assert (s.stop - s.start) % 2 == 0 or s.stop == n
    assert int(count.max()) == 1
    assert bool((count[mask] == 1).all())


def test_empty_corners_are_not_computed() -> None:
    mask = torch.zeros((40, 40, 40), dtype=torch.bool)
    mask[3:6, 30:33, 12:15] = True
    tiles = tiles_of(mask, 20, halo=2)
    assert [kept for _, kept in tiles] == [(slice(3, 6), slice(30, 33), slice(12, 15))]


@pytest.mark.parametrize("network", [MultiScaleDetailNet, DenoiserNet])
def test_tiles_give_the_answer_of_the_whole(network: type) -> None:
    """Halo as far as the network reaches; random weights in all layers; odd sizes."""
    gradients = make_protocol(2, {1000.0: 7}, np.random.default_rng(0))
    shape = (49, 9, 11)
    generator = torch.Generator().manual_seed(0)
    snr, base = ((20 * torch.rand((9, *shape), generator=generator)).half() for _ in range(2))
    mask = torch.ones(shape, dtype=torch.bool)
    context = build_context(snr.flatten(1), base.flatten(1), mask, gradients, range(9))
    extra = {"coordinates_per_channel": N_COORDINATES} if network is MultiScaleDetailNet else {}
    torch.manual_seed(2)
    model = network(N_CHANNELS, 1, 4, **extra).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    float32 = Precision(None)
    for volume in (0, 4):
        whole = predict_volume(model, context, volume, tiles_of(mask, 96, halo=0), float32)
        tiled = predict_volume(model, context, volume, tiles_of(mask, 9, halo=model.reach), float32)
        torch.testing.assert_close(tiled, whole, atol=1e-3, rtol=1e-4)
        assert float((whole - base[volume].float()).abs().max()) > 0.5, "the network must do something"
        narrow = predict_volume(model, context, volume, tiles_of(mask, 9, halo=1), float32)
        assert float((narrow - whole).abs().max()) > 0.01, "a halo too small must show"


def test_b0_comes_back_in_snr_units() -> None:
    """An untrained network gives the base, whatever gain it sees a volume with."""
    gradients = make_protocol(2, {1000.0: 7}, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    snr, base = ((200 * torch.rand((9, 8, 8, 8), generator=generator)).half() for _ in range(2))
    mask = torch.ones((8, 8, 8), dtype=torch.bool)
    context = build_context(snr.flatten(1), base.flatten(1), mask, gradients, range(9))
    model = DenoiserNet(N_CHANNELS, 1, 4).eval()
    tiles = tiles_of(mask, halo=4)
    for volume in range(9):
        found = predict_volume(model, context, volume, tiles, Precision(None))
        torch.testing.assert_close(found, base[volume].float(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("network", [MultiScaleDetailNet, DenoiserNet])
def test_mirrored_predictions_have_no_handedness(network: type) -> None:
    """The prediction of a mirrored run is the mirrored prediction, which a network alone does not give."""
    gradients = make_protocol(2, {1000.0: 7}, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    snr, base = (20 * torch.rand((9, 8, 6, 10), generator=generator) for _ in range(2))
    mask = torch.ones((8, 6, 10), dtype=torch.bool)
    extra = {"coordinates_per_channel": N_COORDINATES} if network is MultiScaleDetailNet else {}
    torch.manual_seed(2)
    model = network(N_CHANNELS, 1, 4, **extra).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tiles = tiles_of(mask, halo=0)

    def predictions(*, mirrored: bool) -> list[torch.Tensor]:
        """Of the run, and of the mirrored run mirrored back."""
        found = []
        for axes in ((), (1, 2, 3)):
            context = build_context(
                snr.flip(axes).flatten(1), base.flip(axes).flatten(1), mask, gradients, range(9)
            )
            found.append(predict_volume(model, context, 4, tiles, Precision(None), mirrored=mirrored))
        return [found[0], found[1].flip(0, 1, 2)]

    plain, back = predictions(mirrored=False)
    assert float((plain - back).abs().max()) > 0.05
    both, same = predictions(mirrored=True)
    torch.testing.assert_close(both, same, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(both, (plain + back) / 2, atol=1e-4, rtol=1e-5)
