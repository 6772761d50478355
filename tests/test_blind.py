"""Blind local PCA: the invariant to the bit, a slow second implementation, and thin or empty surroundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.blind import BlindBase, blind_local_pca, bounding_box
from dwmri_bidsapp.denoising.windows import debias_eigenvalues


def predict(snr_vxyz: torch.Tensor, mask: torch.Tensor, **how: int) -> BlindBase:
    return blind_local_pca(snr_vxyz[:, mask], mask, **how)  # type: ignore[arg-type]


def image(base: BlindBase, mask: torch.Tensor) -> torch.Tensor:
    """The prediction as images (V, X, Y, Z), zero outside the mask."""
    filled = torch.zeros((len(base.base_vn), *mask.shape), dtype=base.base_vn.dtype)
    filled[:, mask] = base.base_vn
    return filled


def low_rank_run(
    shape: tuple[int, ...], n_volumes: int, seed: int = 0, rank: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy (V, X, Y, Z) float16 data of low rank and unit noise everywhere, and a ball for a mask."""
    rng = np.random.default_rng(seed)
    signal = np.einsum(
        "rv,rxyz->vxyz", rng.normal(size=(rank, n_volumes)) * 4, rng.normal(size=(rank, *shape))
    )
    data = 20 + signal + rng.normal(size=(n_volumes, *shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    mask = torch.from_numpy((grid**2).sum(axis=0) < 1.3)
    return torch.from_numpy(data).half(), mask


def block_box(voxel: tuple[int, ...], block: int) -> tuple[slice, ...]:
    return tuple(slice(v // block * block, v // block * block + block) for v in voxel)


def assert_own_block_blind(
    snr: torch.Tensor, mask: torch.Tensor, voxel: tuple[int, ...], v: int, block: int
) -> None:
    """Base of volume v bit-identical in the block of a changed voxel, and something else changed (no vacuous pass)."""
    before = predict(snr, mask, block=block)
    changed = snr.clone()
    changed[v][voxel] += 37.0
    after = predict(changed, mask, block=block)
    box = block_box(voxel, block)
    assert torch.equal(image(before, mask)[v][box], image(after, mask)[v][box])
    i, j, k = (n // block for n in voxel)
    assert torch.equal(before.precisions_vijk[0][:, i, j, k], after.precisions_vijk[0][:, i, j, k])
    assert not torch.equal(image(before, mask), image(after, mask))


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("voxel", [(4, 4, 4), (0, 4, 3), (8, 5, 4)])
def test_own_value_changes_no_bit_of_the_blind_base_in_its_block(block: int, voxel: tuple[int, ...]) -> None:
    snr, mask = low_rank_run((9, 10, 7), 8)
    assert mask[voxel], "the test voxel must lie in the mask"
    for v in (0, 5):
        assert_own_block_blind(snr, mask, voxel, v, block)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (4, 0, 2), (8, 8, 0)])
def test_own_value_stays_out_of_the_prior_of_thin_windows(voxel: tuple[int, ...]) -> None:
    """Where few samples lie around a block the whole brain helps out, without the block itself."""
    snr, _ = low_rank_run((9, 9, 9), 8)
    mask = torch.zeros((9, 9, 9), dtype=torch.bool)
    mask[::4, ::4, ::2] = True
    assert_own_block_blind(snr * mask, mask, voxel, 3, 3)
    # alone in the grid: not even the other colour of blocks exists
    alone = torch.zeros_like(mask)
    alone[voxel] = True
    base = image(predict(snr * alone, alone), alone)
    assert torch.count_nonzero(base) == 0


def test_other_volumes_of_the_voxel_do_use_its_value() -> None:
    """The base of the others changes there at once: the invariant is about the own volume only."""
    snr, mask = low_rank_run((9, 9, 9), 10)
    changed = snr.clone()
    changed[2, 4, 4, 4] += 20.0
    before, after = (image(predict(s, mask), mask)[:, 4, 4, 4].float() for s in (snr, changed))
    assert before[2] == after[2]
    assert (before - after).abs().max() > 1.0


def slow_blind_base(data_vxyz: np.ndarray, mask: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """One block after the other with numpy alone: prediction and 1/P - 1; windows with many samples only."""
    n_volumes = len(data_vxyz)
    base, error = np.zeros_like(data_vxyz), np.zeros_like(data_vxyz)
    for corner in np.ndindex(*(-(-n // block) for n in mask.shape)):
        own = tuple(slice(c * block, (c + 1) * block) for c in corner)
        window = np.zeros_like(mask)
        window[tuple(slice(max(0, (c - 1) * block), (c + 2) * block) for c in corner)] = True
        window[own] = False
        samples = data_vxyz[:, window & mask]
        values, vectors = np.linalg.eigh(np.cov(samples, bias=True))
        gamma = n_volumes / samples.shape[1]
        clean = np.ones_like(values)
        for i, value in enumerate(values):
            if value > (1 + np.sqrt(gamma)) ** 2:
                a = value + 1 - gamma
                clean[i] = max(1.0, (a + np.sqrt(a * a - 4 * value)) / 2)
        precision = np.linalg.inv(vectors @ np.diag(clean) @ vectors.T)
        mean = samples.mean(axis=1)
        for v in range(n_volumes):
            others = np.delete(np.arange(n_volumes), v)
            weights = -precision[v, others] / precision[v, v]
            centred = np.stack([data_vxyz[u][own] for u in others]) - mean[others, None, None, None]
            base[v][own] = mean[v] + np.tensordot(weights, centred, axes=1)
            error[v][own] = 1 / precision[v, v] - 1
    return base * mask, error


@pytest.mark.parametrize("block", [2, 3])
def test_against_a_slow_second_implementation(block: int) -> None:
    snr, _ = low_rank_run((10, 9, 11), 6)
    mask = torch.ones((10, 9, 11), dtype=torch.bool)
    expected, error = slow_blind_base(snr.double().numpy(), mask.numpy(), block)
    found = predict(snr, mask, block=block)
    np.testing.assert_allclose(image(found, mask).double().numpy(), expected, atol=0.03)
    for v in range(6):
        np.testing.assert_allclose(
            found.expected_error(v, (10, 9, 11)).numpy(), error[v], rtol=5e-3, atol=2e-3
        )


def test_expected_error_is_what_the_prediction_misses() -> None:
    """Stationary low-rank data: the mean squared residual is 1/P, that is the noise and the expected error."""
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(2, 12)) * 3
    data = np.einsum("rv,rxyz->vxyz", factors, rng.normal(size=(2, 18, 18, 18))) + rng.normal(
        size=(12, 18, 18, 18)
    )
    snr, mask = torch.from_numpy(data).half(), torch.ones((18, 18, 18), dtype=torch.bool)
    found = predict(snr, mask)
    residual = (snr.float() - image(found, mask).float()).square().mean(dim=(1, 2, 3))
    expected = torch.stack([found.expected_error(v, (18, 18, 18)).mean() for v in range(12)]) + 1
    np.testing.assert_allclose(residual, expected, rtol=0.06)


def test_expected_error_has_the_grid_of_the_run() -> None:
    precision = torch.full((1, 2, 2, 2), 0.5)
    precision[0, 1] = 0.25
    base = BlindBase(torch.zeros(1, 120), [precision], 3)
    error = base.expected_error(0, (5, 4, 6))
    assert error.shape == (5, 4, 6)
    assert error[:3].unique().tolist() == [1.0]
    assert error[3:].unique().tolist() == [3.0]


def test_expected_error_of_two_grids_is_the_mean_where_their_blocks_lie() -> None:
    first, second = torch.full((1, 3, 3, 2), 0.5), torch.full((1, 3, 3, 2), 0.5)
    second[0, 1] = 0.25
    error = BlindBase(torch.zeros(1, 40), [first, second], 2).expected_error(0, (5, 4, 2))
    # the second block of the second grid begins one voxel before that of the first one
    assert error[:, 0, 0].tolist() == [1.0, 2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("block", [2, 3])
def test_two_grids_are_averaged(block: int) -> None:
    """The second grid is that of the same data with one more row of voxels outside the mask before each axis."""
    snr, mask = low_rank_run((9, 10, 7), 8)
    both = predict(snr, mask, block=block, grids=2)
    one = predict(snr, mask, block=block)
    before = (1, 0) * 3
    padded = torch.nn.functional.pad(mask, before)
    other = predict(torch.nn.functional.pad(snr, before), padded, block=block)
    mean = (one.base_vn.float() + other.base_vn.float()) / 2
    assert not torch.equal(one.base_vn, other.base_vn)
    np.testing.assert_allclose(both.base_vn.float(), mean, rtol=1e-3)
    assert torch.equal(both.precisions_vijk[0], one.precisions_vijk[0])
    assert torch.equal(both.precisions_vijk[1], other.precisions_vijk[0])


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("voxel", [(4, 4, 4), (0, 4, 3), (8, 5, 4)])
def test_own_value_changes_no_bit_of_the_average_of_two_grids(
    block: int, voxel: tuple[int, int, int]
) -> None:
    snr, mask = low_rank_run((9, 10, 7), 8)
    before = image(predict(snr, mask, block=block, grids=2), mask)
    snr[2][voxel] += 37.0
    after = image(predict(snr, mask, block=block, grids=2), mask)
    assert before[2][voxel] == after[2][voxel]
    assert not torch.equal(before, after)


def test_two_grids_are_nearer_to_the_truth_than_one() -> None:
    """A signal that changes over some voxels, as anatomy does."""
    rng = np.random.default_rng(5)
    x, y, z = np.meshgrid(*(np.arange(16.0),) * 3, indexing="ij")
    parts = np.stack([np.sin(x / 2), np.cos(y / 2 + z / 3), np.sin((x + z) / 3)])
    truth = 20 + np.einsum("rv,rxyz->vxyz", rng.normal(size=(3, 12)) * 4, parts)
    snr = torch.from_numpy(truth + rng.normal(size=truth.shape)).half()
    mask = torch.ones((16, 16, 16), dtype=torch.bool)
    one, two = (
        (image(predict(snr, mask, block=2, grids=grids), mask).float() - torch.from_numpy(truth))
        .square()
        .mean()
        for grids in (1, 2)
    )
    assert two < 0.99 * one


def thin_masks() -> dict[str, torch.Tensor]:
    sheet, line, voxel, islands = (torch.zeros((13, 12, 11), dtype=torch.bool) for _ in range(4))
    sheet[:, :, 5] = True
    line[6, :, 5] = True
    voxel[6, 6, 5] = True
    islands[0, 0, 0] = islands[12, 11, 10] = islands[6, 6, 5] = True
    return {"sheet": sheet, "line": line, "voxel": voxel, "islands": islands}


@pytest.mark.parametrize("name", ["sheet", "line", "voxel", "islands"])
@pytest.mark.parametrize("n_volumes", [6, 20])
@pytest.mark.parametrize("grids", [1, 2])
def test_thin_masks_give_finite_values(name: str, n_volumes: int, grids: int) -> None:
    mask = thin_masks()[name]
    snr = low_rank_run(tuple(mask.shape), n_volumes)[0] * mask
    found = predict(snr, mask, grids=grids)
    assert torch.isfinite(image(found, mask)).all()
    assert torch.count_nonzero(image(found, mask)[:, ~mask]) == 0
    assert all(torch.isfinite(found.expected_error(v, (13, 12, 11))).all() for v in range(n_volumes))
    assert all(float(precision.max()) <= 1.0 + 1e-5 for precision in found.precisions_vijk)
    assert all(float(precision.min()) > 0.0 for precision in found.precisions_vijk)


def test_more_volumes_than_samples_in_a_window() -> None:
    """Blocks of 1 have 26 neighbours; 40 volumes are still predicted better than by their mean."""
    snr, mask = low_rank_run((6, 6, 6), 40, rank=1)
    found = predict(snr, mask, block=1)
    assert torch.isfinite(image(found, mask)).all()
    residual = (snr.float() - image(found, mask).float())[:, mask].square().mean()
    assert residual < 0.5 * snr.float()[:, mask].var(dim=1).mean()


def test_content_outside_the_mask_does_not_matter() -> None:
    snr, mask = low_rank_run((9, 8, 10), 7)
    noise = 50 * torch.rand(snr.shape, generator=torch.Generator().manual_seed(0)).half()
    one, other = (predict(s, mask) for s in (snr, torch.where(mask, snr, noise)))
    assert torch.equal(image(one, mask), image(other, mask))
    assert torch.equal(one.precisions_vijk[0], other.precisions_vijk[0])


def test_debiased_eigenvalues_are_those_of_the_population() -> None:
    """Simulated spiked covariance: 60 variables, 400 samples, spikes of 30, 8 and 3."""
    rng = np.random.default_rng(3)
    spikes = [30.0, 8.0, 3.0]
    scale = np.ones(60)
    scale[:3] = np.sqrt(spikes)
    found, raw = [], []
    for _ in range(40):
        samples = rng.normal(size=(400, 60)) * scale
        values = torch.from_numpy(np.linalg.eigvalsh(samples.T @ samples / 400)[::-1].copy())
        found.append(debias_eigenvalues(values, torch.tensor(60 / 400)).numpy())
        raw.append(values.numpy())
    mean, raw_mean = np.mean(found, axis=0), np.mean(raw, axis=0)
    np.testing.assert_allclose(mean[:3], spikes, rtol=0.05)
    assert raw_mean[2] > 1.06 * 3.0, "the sample eigenvalue must be biased, or the test says nothing"
    assert np.all(mean[3:] >= 1.0) and mean[4:].max() < 1.05


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0])
def test_eigenvalues_in_the_bulk_become_the_noise(ratio: float) -> None:
    edge = (1 + np.sqrt(ratio)) ** 2
    values = torch.tensor([0.0, 0.3, 1.0, edge * 0.999, edge * 1.5])
    found = debias_eigenvalues(values, torch.tensor(ratio))
    assert found[:4].tolist() == [1.0] * 4
    assert 1.0 < float(found[4]) < float(values[4])


def test_bounding_box_is_tight_and_cut_at_the_grid() -> None:
    mask = np.zeros((6, 7, 8), dtype=bool)
    mask[2:4, 0, 5:8] = True
    assert bounding_box(mask) == (slice(2, 4), slice(0, 1), slice(5, 8))
    assert bounding_box(mask, margin=2) == (slice(0, 6), slice(0, 3), slice(3, 8))
