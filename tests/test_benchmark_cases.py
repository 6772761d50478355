"""Cases of the benchmark: simulated and acquired runs with their truth, seeds and grids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from benchmark_helpers import SMALL, write_acquired
from numpy.testing import assert_array_equal

from dwmri_bidsapp.benchmark.cases import (
    NOISES,
    PROTOCOLS,
    Case,
    Run,
    acquired_cases,
    default_cases,
    grid_of_cases,
    make_run,
    parse_protocol,
)
from dwmri_bidsapp.errors import UsageError
from dwmri_bidsapp.gradients import Gradients


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(SMALL)


def test_a_case_is_a_run(run: Run) -> None:
    again = make_run(SMALL)
    np.testing.assert_array_equal(run.noisy_xyzv, again.noisy_xyzv)
    other = make_run(dataclasses.replace(SMALL, snr=10.0))
    assert other.sigma_xyz.mean() == pytest.approx(2 * run.sigma_xyz.mean(), rel=1e-3)
    assert run.noisy_xyzv.shape[3] == 33
    error = (run.noisy_xyzv - run.expected_xyzv)[run.mask_xyz] / run.sigma_xyz[run.mask_xyz][:, None]
    assert abs(error.mean()) < 0.01
    assert {"white", "grey"} <= set(run.tissues_xyz)


@pytest.mark.parametrize("noise", NOISES)
def test_the_mean_of_the_noise_is_what_is_called_expected(noise: Any) -> None:
    case = dataclasses.replace(SMALL, noise=noise, snr=5.0, protocol="b2500")
    found = make_run(case)
    error = ((found.noisy_xyzv - found.expected_xyzv) / found.sigma_xyz[..., None])[found.mask_xyz]
    assert abs(error.mean(dtype=np.float64)) < 0.02
    floor = (found.expected_xyzv - found.clean_xyzv)[found.mask_xyz] / found.sigma_xyz[found.mask_xyz][
        :, None
    ]
    assert floor.mean() > 0.2
    spread = found.sigma_xyz[found.mask_xyz].std() / found.sigma_xyz[found.mask_xyz].mean()
    assert (spread < 1e-6) == (noise == "rician")
    # clipped where the magnitude is below the floor of its noise, so the clean signal itself is its inverse
    np.testing.assert_allclose(found.corrected(found.expected_xyzv), found.clean_xyzv, atol=0.5)


def test_grids() -> None:
    cases = default_cases()
    assert {case.protocol for case in cases} == set(PROTOCOLS)
    assert {case.noise for case in cases} == set(NOISES)
    assert {case.snr for case in cases} == {10.0, 20.0, 40.0}
    assert len(set(cases)) == len(cases) == 18
    assert len(default_cases(quick=True)) == 1
    full = grid_of_cases(protocols=list(PROTOCOLS), snrs=[10, 20, 40], noises=NOISES, seeds=range(4))
    assert len(set(full)) == 192


def test_protocols_have_names_or_numbers() -> None:
    assert parse_protocol("b2500") == (6, {2500.0: 60})
    assert parse_protocol("2+18x1000+20x3000") == (2, {1000.0: 18, 3000.0: 20})
    for text in ("none", "6", "6+", "6+60", "x+6x1000", "6+60x"):
        with pytest.raises(UsageError, match="6\\+60x2500"):
            parse_protocol(text)
    for text in ("0+7x700", "6+0x1000", "6+5x1000", "1+10x1000+10x1000"):
        with pytest.raises(UsageError, match="each shell named once"):
            parse_protocol(text)
    found = make_run(Case(protocol="2+7x700", shape=(6, 6, 6), voxel_size=8.0)).gradients
    assert found.shell_bvals.tolist() == [0, 700]
    with pytest.raises(UsageError, match="SNR"):
        make_run(Case(snr=0))
    with pytest.raises(UsageError, match="SNR"):
        make_run(Case(snr=float("nan")))
    with pytest.raises(UsageError, match="seed"):
        make_run(Case(seed=-1))


def test_noise_of_the_wanted_level_is_added_to_an_acquired_run(run: Run, tmp_path: Path) -> None:
    acquired_file = write_acquired(run, tmp_path)
    case, other = acquired_cases([acquired_file], snrs=[8.0], noises=["varying"], seeds=[3, 4])
    assert (case.protocol, case.shape, case.voxel_size) == ("1+32x1000", (16, 18, 12), 3.0)
    assert case.columns()["file"] == "sub-7_dwi.nii.gz"
    with pytest.raises(UsageError, match="different names"):
        acquired_cases(
            [acquired_file, tmp_path / "other" / acquired_file.name],
            snrs=[8.0],
            noises=["varying"],
            seeds=[3],
        )
    found = make_run(case)
    assert_array_equal(found.clean_xyzv, np.maximum(nb.load(acquired_file).get_fdata(dtype=np.float32), 0))
    assert found.clean_xyzv[0, 0, 0, 0] == 0
    median = np.median(run.clean_xyzv[..., 0][found.mask_xyz])
    assert found.sigma_xyz[found.mask_xyz].mean() == pytest.approx(median / 8, rel=1e-3)
    # far above the floor the noise is Gaussian
    bright_xyz = found.mask_xyz & (found.clean_xyzv[..., 0] > median)
    noise_n = (found.noisy_xyzv[..., 0] - found.clean_xyzv[..., 0])[bright_xyz] / found.sigma_xyz[bright_xyz]
    assert noise_n.std() == pytest.approx(1, abs=0.1)
    assert_array_equal(make_run(case).noisy_xyzv, found.noisy_xyzv)
    assert (make_run(other).noisy_xyzv != found.noisy_xyzv).mean() > 0.9


def test_gradients_of_the_protocols() -> None:
    for name, (n_b0, shells) in PROTOCOLS.items():
        found: Gradients = make_run(Case(protocol=name, shape=(6, 6, 6), voxel_size=8.0)).gradients
        assert np.bincount(found.shell).tolist() == [n_b0, *shells.values()]
