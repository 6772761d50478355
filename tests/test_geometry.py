"""The geometric family: full of borders and bundles, other than the brains, different from seed to seed."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from dwmri_bidsapp.errors import UsageError
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import fit_tensor
from dwmri_bidsapp.simulation import (
    Anatomy,
    Microstructure,
    anatomy,
    b0_signal,
    brain_anatomy,
    clean_signal,
    draw_microstructure,
    geometric_anatomy,
    make_protocol,
    simulate_phantom,
)
from dwmri_bidsapp.simulation.fields import SmoothField, distance_to_zero_curves, grid_field

SHAPE = (32, 34, 28)
SEEDS = range(8)


@pytest.fixture(scope="module")
def heads() -> list[Anatomy]:
    return [geometric_anatomy(seed=seed, shape=SHAPE) for seed in SEEDS]


@pytest.fixture(scope="module")
def protocol() -> Gradients:
    return make_protocol(1, {1000: 6, 2500: 6}, np.random.default_rng(0))


def test_a_seed_is_a_head(heads: list[Anatomy]) -> None:
    again = geometric_anatomy(seed=0, shape=SHAPE)
    for field in dataclasses.fields(Anatomy):
        np.testing.assert_equal(getattr(again, field.name), getattr(heads[0], field.name))
    first, second = (head.to_volume(head.grey_n).ravel() for head in heads[:2])
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_voxels_hold_no_more_than_their_volume(heads: list[Anatomy]) -> None:
    for head in heads:
        shares_nt = np.stack([head.white_n, head.grey_n, head.csf_n], axis=1)
        assert shares_nt.min() > -1e-6
        assert shares_nt.sum(axis=1).min() > 0.5
        assert shares_nt.sum(axis=1).max() < 1 + 1e-5
        np.testing.assert_allclose(head.fractions_nk.sum(axis=1), 1, atol=1e-5)
        used = head.fractions_nk > 1e-3
        np.testing.assert_allclose(np.linalg.norm(head.directions_nk3[used], axis=1), 1, atol=1e-4)
        assert not head.lesion_n.any()
        assert head.white_n.dtype == head.dispersion_n.dtype == np.float32


def test_it_never_looks_at_the_brain(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the template was asked for")

    monkeypatch.setattr(anatomy, "_load_template", refuse)
    geometric_anatomy(seed=1, shape=(10, 12, 8))
    with pytest.raises(AssertionError, match="template"):
        brain_anatomy(seed=1, shape=(10, 12, 8))


def test_borders_are_sharp_and_some_voxels_hold_two_tissues(heads: list[Anatomy]) -> None:
    """From one voxel to the next the tissue changes nearly completely somewhere in every head."""
    for head in heads:
        white_xyz = head.to_volume(head.white_n)
        both = head.mask_xyz[1:] & head.mask_xyz[:-1]
        assert np.abs(np.diff(white_xyz, axis=0))[both].max() > 0.8
        assert ((head.white_n > 0.1) & (head.white_n < 0.9)).mean() > 0.02


def test_heads_differ_more_than_brains(heads: list[Anatomy]) -> None:
    brains = [brain_anatomy(seed=seed, shape=SHAPE) for seed in SEEDS[:4]]
    spread = {
        name: [np.std([getattr(one, name).mean() for one in family]) for family in (heads, brains)]
        for name in ("white_n", "csf_n", "axonal_n")
    }
    assert all(geometric > 2 * brain for geometric, brain in spread.values()), spread
    dispersion = [head.dispersion_n.mean() for head in heads]
    assert max(dispersion) > 2 * min(dispersion)


def test_fibres_cross_and_bundles_have_borders(heads: list[Anatomy]) -> None:
    populations = np.concatenate([(head.fractions_nk > 0.15).sum(axis=1) for head in heads])
    assert set(populations) >= {1, 2, 3}
    jumps = []
    for head in heads:
        strongest_n = head.fractions_nk.argmax(axis=1)
        direction_xyz3 = np.zeros((*SHAPE, 3), dtype=np.float32)
        direction_xyz3[head.mask_xyz] = head.directions_nk3[np.arange(len(strongest_n)), strongest_n]
        cosine = np.abs((direction_xyz3[1:] * direction_xyz3[:-1]).sum(axis=-1))
        jumps.append((cosine[head.mask_xyz[1:] & head.mask_xyz[:-1]] < 0.7).mean())
    assert min(jumps) > 0.005
    assert max(jumps) < 0.5


def test_tensors_point_along_the_only_fibres(heads: list[Anatomy], protocol: Gradients) -> None:
    for head in heads[:3]:
        single = (head.white_n > 0.95) & (head.fractions_nk.max(axis=1) > 0.97)
        fibres = head.directions_nk3[single, head.fractions_nk[single].argmax(axis=1)]
        tensor = fit_tensor(clean_signal(head, protocol), protocol, head.mask_xyz)
        cosine = np.abs((tensor.v1_xyzd[head.mask_xyz][single] * fibres).sum(axis=1))
        assert np.median(np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))) < 3


def test_dispersion_lowers_anisotropy(heads: list[Anatomy], protocol: Gradients) -> None:
    parallel, spread = (
        dataclasses.replace(heads[0], dispersion_n=np.full(1, value, dtype=np.float32)) for value in (0, 0.4)
    )
    fa = [
        fit_tensor(clean_signal(head, protocol), protocol, head.mask_xyz).fa_xyz[head.mask_xyz]
        for head in (parallel, spread)
    ]
    white = heads[0].white_n > 0.9
    assert fa[1][white].mean() < 0.7 * fa[0][white].mean()
    weak = make_protocol(1, {100: 6}, np.random.default_rng(0))
    md = [
        fit_tensor(clean_signal(head, weak), weak, head.mask_xyz).md_xyz[head.mask_xyz][white].mean()
        for head in (parallel, spread)
    ]
    assert md[1] == pytest.approx(md[0], rel=0.02), "it turns diffusivity, and takes none"
    isotropic = dataclasses.replace(heads[0], dispersion_n=np.full(1, 2 / 3, dtype=np.float32))
    signal = clean_signal(isotropic, protocol)[heads[0].mask_xyz][white][:, protocol.shell == 1]
    assert (signal.std(axis=1) / signal.mean(axis=1)).max() < 0.02


def test_microstructure_is_the_anatomys(heads: list[Anatomy], protocol: Gradients) -> None:
    first, again, other = (draw_microstructure(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again != other
    for seed in range(20):
        water = draw_microstructure(np.random.default_rng(seed))
        assert water.around_across < water.around_along
        assert sum(water.grey_shares) == pytest.approx(1)
    usual = dataclasses.replace(heads[0], microstructure=Microstructure())
    bright = dataclasses.replace(heads[0], microstructure=Microstructure(csf_b0=2 * Microstructure().csf_b0))
    more = clean_signal(bright, protocol) - clean_signal(usual, protocol)
    csf = heads[0].csf_n > 0.1
    assert (more[heads[0].mask_xyz][csf][:, 0] > 0).all()
    np.testing.assert_allclose(more[heads[0].mask_xyz][heads[0].csf_n == 0], 0, atol=1e-3)


def test_families_and_lesions_are_chosen(protocol: Gradients) -> None:
    healthy, ill = (
        simulate_phantom(gradients=protocol, seed=1, shape=SHAPE, lesions=lesions)
        for lesions in (False, True)
    )
    assert not healthy.lesion_xyz.any()
    assert ill.lesion_xyz.any()
    same = ill.lesion_xyz == 0
    np.testing.assert_allclose(healthy.clean_xyzv[same], ill.clean_xyzv[same], rtol=1e-5)
    head = simulate_phantom(gradients=protocol, seed=1, shape=SHAPE, family="geometric")
    assert head.clean_xyzv.shape == healthy.clean_xyzv.shape
    assert not head.clean_xyzv[~head.mask_xyz].any()
    assert np.isfinite(head.clean_xyzv).all()
    assert 500 < b0_signal(head) < 2000
    with pytest.raises(UsageError, match="geometric"):
        simulate_phantom(gradients=protocol, seed=1, family="heart")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="grid"):
        geometric_anatomy(seed=0, shape=(1, 8, 8))


def test_b0_signal_without_white_matter(protocol: Gradients) -> None:
    phantom = simulate_phantom(gradients=protocol, seed=1, shape=SHAPE, family="geometric")
    grey = dataclasses.replace(phantom, white_xyz=np.zeros_like(phantom.white_xyz))
    expected = phantom.clean_xyzv[phantom.mask_xyz][:, protocol.b0].mean()
    assert b0_signal(grey) == pytest.approx(expected, rel=1e-4)


def test_grid_fields_are_smooth_fields() -> None:
    """The lattice of a point-wise field, at the same places."""
    axes = tuple(np.arange(20, dtype=np.float32) * 1.5 for _ in range(3))
    field_xyz = grid_field(axes, 7.0, np.random.default_rng(0))
    slow = SmoothField(7.0, np.random.default_rng(1))
    size = [int(np.ceil(axes[0][-1] / 7 + 1)) + 2] * 3
    lattice = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    slow._lattice = lattice / np.float32(0.4794**1.5)
    lower = np.array([-110.0, -150.0, -110.0], dtype=np.float32)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3) + lower
    np.testing.assert_allclose(field_xyz.ravel(), slow(points), atol=2e-3)
    many = [grid_field(axes, 3.0, np.random.default_rng(s)).std() for s in range(5)]
    assert np.mean(many) == pytest.approx(1, abs=0.1)


def test_distance_to_zero_curves_of_planes() -> None:
    x, y, _ = np.meshgrid(*[np.arange(-5, 6, dtype=np.float32) * 2] * 3, indexing="ij")
    distance_xyz, tangent_xyz3 = distance_to_zero_curves(x, y + 0.5 * x, 2.0)
    np.testing.assert_allclose(distance_xyz, np.hypot(x, y), atol=1e-4)
    np.testing.assert_allclose(np.abs(tangent_xyz3[..., 2]), 1, atol=1e-5)


def test_a_training_head_takes_a_second() -> None:
    gradients = make_protocol(2, {1000: 38}, np.random.default_rng(0))
    start = time.process_time()
    simulate_phantom(gradients=gradients, seed=0, shape=(48, 48, 40), family="geometric")
    assert time.process_time() - start < 10, "it takes about one"
