"""Gradient tables: shells, neighbours, files, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dipy.data import get_fnames

from dwmri_bidsapp.errors import BadDataError
from dwmri_bidsapp.gradients import (
    Gradients,
    check_protocol,
    count_directions,
    direction_cosines,
    load_gradients,
    nearest_in_shell,
)


def random_directions(n: int, seed: int = 0) -> np.ndarray:
    directions = np.random.default_rng(seed).standard_normal((n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def table(bvals: Sequence[float], seed: int = 0) -> Gradients:
    return Gradients.from_arrays(bvals, random_directions(len(bvals), seed))


def write_table(folder: Path, bvals: str, bvecs: str) -> tuple[Path, Path]:
    (folder / "x.bval").write_text(bvals)
    (folder / "x.bvec").write_text(bvecs)
    return folder / "x.bval", folder / "x.bvec"


def write_arrays(folder: Path, bvals: np.ndarray, bvecs: np.ndarray) -> tuple[Path, Path]:
    np.savetxt(folder / "x.bval", bvals)
    np.savetxt(folder / "x.bvec", bvecs)
    return folder / "x.bval", folder / "x.bvec"


def test_jitter_is_one_shell_and_shells_are_kept_apart() -> None:
    gradients = table([4, 999.998, 2005, 995, 5, 1005, 1990, 3000])
    np.testing.assert_array_equal(gradients.shell, [0, 1, 2, 1, 0, 1, 2, 3])
    np.testing.assert_array_equal(gradients.shell_bvals, [5, 1000, 2000, 3000])
    np.testing.assert_array_equal(gradients.b0, gradients.shell == 0)
    np.testing.assert_array_equal(gradients.dwi, ~gradients.b0)
    assert [gradients.shell_name(s) for s in range(4)] == ["b0", "b1000", "b2000", "b3000"]


def test_a_ramp_of_b_values_does_not_become_one_shell() -> None:
    gradients = table(list(np.linspace(0, 4000, 101)))
    for shell in range(1, len(gradients.shell_bvals)):
        bvals = gradients.bvals[gradients.shell == shell]
        assert np.ptp(bvals) <= max(100, 0.1 * bvals.min())
    assert np.all(np.diff(gradients.shell_bvals) > 0)


def test_shell_zero_is_kept_for_b0_even_without_one() -> None:
    gradients = table([1000.0] * 6)
    assert gradients.shell_bvals.tolist() == [0, 1000]
    assert set(gradients.shell) == {1}


@pytest.mark.parametrize(("threshold", "n_b0"), [(50.0, 1), (120.0, 2)])
def test_the_threshold_decides_what_is_b0(threshold: float, n_b0: int) -> None:
    gradients = Gradients.from_arrays([0, 100, 1000], np.eye(3), b0_threshold=threshold)
    assert gradients.b0.sum() == n_b0


def test_directions_become_unit_vectors_and_b0_zeros() -> None:
    directions = random_directions(4)
    gradients = Gradients.from_arrays([5, 1000, 1000, 1000], directions * [[1], [1], [0.5], [1.005]])
    np.testing.assert_allclose(gradients.bvecs[1:], directions[1:], atol=1e-12)
    np.testing.assert_array_equal(gradients.bvecs[0], 0)
    assert len(gradients.warnings) == 1
    assert "volumes 2:" in gradients.warnings[0]


def test_input_arrays_are_left_alone() -> None:
    directions = 2 * random_directions(3)
    kept = directions.copy()
    Gradients.from_arrays([0, 1000, 1000], directions)
    np.testing.assert_array_equal(directions, kept)


def test_select_keeps_shell_numbers() -> None:
    gradients = table([0, 1000, 2000, 2000])
    chosen = gradients.select(gradients.shell != 1)
    assert chosen.shell.tolist() == [0, 2, 2]
    assert chosen.shell_bvals.tolist() == [0, 1000, 2000]
    np.testing.assert_array_equal(chosen.bvecs, gradients.bvecs[[0, 2, 3]])


def nearest_one_by_one(gradients: Gradients, n: int) -> list[list[int]]:
    """Say it slowly: sort the other members of the shell by angle, then by index."""
    rows = []
    for i in np.flatnonzero(gradients.dwi):
        others = [
            j for j in range(gradients.n_volumes) if j != i and gradients.shell[j] == gradients.shell[i]
        ]
        angle = {j: np.arccos(min(1.0, abs(gradients.bvecs[i] @ gradients.bvecs[j]))) for j in others}
        rows.append(sorted(others, key=lambda j: (angle[j], j))[:n])
    return rows


def test_nearest_agrees_with_sorting_by_angle() -> None:
    gradients = table([0] * 3 + [1000] * 12 + [2000] * 15, seed=3)
    assert nearest_in_shell(gradients, 6)[3:].tolist() == nearest_one_by_one(gradients, 6)


def test_opposite_directions_are_the_same() -> None:
    bvals, directions = [0.0] + [1000.0] * 20, random_directions(21, seed=4)
    flips = np.random.default_rng(5).choice([-1.0, 1.0], size=(21, 1))
    plain = nearest_in_shell(Gradients.from_arrays(bvals, directions), 6)
    flipped = nearest_in_shell(Gradients.from_arrays(bvals, directions * flips), 6)
    np.testing.assert_array_equal(plain, flipped)


def test_nearest_b0_is_nearest_in_time() -> None:
    gradients = table([0, 1000, 1000, 0, 1000, 0, 1000])
    assert nearest_in_shell(gradients, 2)[[0, 3, 5]].tolist() == [[3, 5], [5, 0], [3, 0]]


def test_small_shells_repeat_and_lonely_volumes_borrow_from_the_nearest_shell() -> None:
    gradients = table([0, 700, 1000, 1000, 1000, 3000, 3000])
    nearest = nearest_in_shell(gradients, 4)
    assert set(nearest[2]) == {3, 4}
    assert nearest[2].tolist()[:2] == nearest[2].tolist()[2:]
    assert set(nearest[1]) <= {2, 3, 4}
    assert set(nearest[5]) == {6}
    assert nearest[0].tolist() == [1, 1, 1, 1]


def test_a_lonely_weighted_volume_does_not_borrow_b0() -> None:
    nearest = nearest_in_shell(table([0, 0, 300, 1000, 1000]), 2)
    assert set(nearest[2]) == {3, 4}


@pytest.mark.parametrize("bvals", [[0, 1000], [0, 0], [1000, 2000], [0, 300, 600, 900, 1200]])
def test_a_volume_is_never_its_own_neighbour(bvals: list[float]) -> None:
    nearest = nearest_in_shell(table(bvals), 6)
    assert nearest.shape == (len(bvals), 6)
    assert not (nearest == np.arange(len(bvals))[:, None]).any()


def test_a_single_volume_has_no_neighbours() -> None:
    with pytest.raises(BadDataError, match="single"):
        nearest_in_shell(table([1000]), 2)


def test_cosines_are_zero_at_b0_and_one_with_oneself() -> None:
    cosines = direction_cosines(table([0, 1000, 2000]))
    np.testing.assert_allclose(np.diag(cosines), [0, 1, 1])
    np.testing.assert_array_equal(cosines, cosines.T)


@pytest.mark.parametrize("transposed", [False, True])
def test_both_layouts_of_the_files_are_read(tmp_path: Path, transposed: bool) -> None:
    bvals, directions = np.array([0.0, 1000, 1000, 2000]), random_directions(4)
    bval, bvec = write_arrays(
        tmp_path, bvals[:, None] if transposed else bvals[None], directions if transposed else directions.T
    )
    gradients = load_gradients(bval, bvec, 4)
    np.testing.assert_array_equal(gradients.bvals, bvals)
    np.testing.assert_allclose(gradients.bvecs[1:], directions[1:], atol=1e-12)


def test_three_volumes_are_read_as_fsl_has_them(tmp_path: Path) -> None:
    directions = random_directions(3)
    bval, bvec = write_arrays(tmp_path, np.array([[1000.0, 1000, 1000]]), directions.T)
    np.testing.assert_allclose(load_gradients(bval, bvec, 3).bvecs, directions, atol=1e-12)


GOOD_BVECS = "0 1 0\n0 0 1\n0 0 0\n"


@pytest.mark.parametrize(
    ("bvals", "bvecs", "message"),
    [
        ("0 1000\n", GOOD_BVECS, "x.bval: expected 3 b-values.*found 2"),
        ("0 1000 1000\n", "0 1\n0 0\n0 0\n", "x.bvec: expected 3 rows of 3 numbers, found 3 rows of 2"),
        ("0 1000 1000\n", "0 1 0\n0 0 1\n", "x.bvec.*found 2 rows of 3"),
        ("0 1000 1000\n", "0 1 0\n0 0\n0 0 0\n", "x.bvec: expected rows of equal length"),
        ("0 nan 1000\n", GOOD_BVECS, "x.bval.*not finite in volumes 1 "),
        ("0 -1000 1000\n", GOOD_BVECS, "negative b-values in volumes 1 "),
        ("0 b1000 1000\n", GOOD_BVECS, "x.bval: expected numbers only"),
        ("", GOOD_BVECS, "x.bval.*found nothing"),
        ("0 1000 1000\n", "0 1 0\n0 0 0\n0 0 0\n", "length zero.*in volumes 2 "),
        ("0 1000 1000\n", "0 1 nan\n0 0 0\n0 0 0\n", "x.bvec.*not finite in volumes 2 "),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, bvals: str, bvecs: str, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        load_gradients(*write_table(tmp_path, bvals, bvecs), 3)


def test_a_missing_and_a_binary_file_are_named(tmp_path: Path) -> None:
    bval, bvec = write_table(tmp_path, "0 1000 1000\n", GOOD_BVECS)
    with pytest.raises(BadDataError, match=r"absent.bvec: No such file"):
        load_gradients(bval, tmp_path / "absent.bvec", 3)
    bvec.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(BadDataError, match=r"x.bvec: .*binary"):
        load_gradients(bval, bvec, 3)


def test_nan_directions_are_fine_at_b0(tmp_path: Path) -> None:
    files = write_table(tmp_path, "0 1000 1000\n", "nan 1 0\nnan 0 1\nnan 0 0\n")
    np.testing.assert_array_equal(load_gradients(*files, 3).bvecs[0], 0)


def test_arrays_of_wrong_shape_are_refused() -> None:
    with pytest.raises(BadDataError, match=r"\(3,\) and \(3, 2\)"):
        Gradients.from_arrays([0, 1, 2], np.zeros((3, 2)))


def test_repeated_and_opposite_directions_count_once() -> None:
    directions = random_directions(5)
    repeated = np.concatenate([directions, -directions, directions, np.zeros((1, 3))])
    gradients = Gradients.from_arrays([1000] * 15 + [0], repeated)
    assert count_directions(gradients) == 5
    with pytest.raises(BadDataError, match="at least 6 distinct directions, found 5"):
        check_protocol(gradients)


@pytest.mark.parametrize(
    ("bvals", "message"), [([1000.0] * 8, "b=0 volume"), ([0.0], "single"), ([0, 1, 2, 3], "found 0")]
)
def test_protocols_that_cannot_work_are_refused(bvals: list[float], message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        check_protocol(table(bvals))


def test_a_good_protocol_has_no_warnings_and_weak_ones_say_why() -> None:
    assert check_protocol(table([0, 0] + [1000] * 20)) == []
    few, single_b0, lonely = check_protocol(table([0] + [1000] * 6 + [2000]))
    assert "only 7 distinct" in few
    assert "single b=0" in single_b0
    assert "2000" in lonely


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_directions_in_a_plane_or_on_a_cone_are_warned_of(height: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 21, endpoint=False)
    cone = np.stack([np.cos(angles), np.sin(angles), height + 0 * angles], axis=1)
    cone /= np.linalg.norm(cone, axis=1, keepdims=True)
    gradients = Gradients.from_arrays([0, 0] + [1000] * 21, np.concatenate([np.zeros((2, 3)), cone]))
    assert any("do not span" in warning for warning in check_protocol(gradients))


@pytest.mark.parametrize(("name", "n_volumes", "n_shells"), [("small_64D", 65, 2), ("small_101D", 102, 13)])
def test_real_tables_one_shell_and_a_grid_of_q_space(name: str, n_volumes: int, n_shells: int) -> None:
    _, bval, bvec = get_fnames(name=name)
    gradients = load_gradients(bval, bvec, n_volumes)
    assert len(gradients.shell_bvals) == n_shells
    np.testing.assert_allclose(np.linalg.norm(gradients.bvecs[gradients.dwi], axis=1), 1)
    assert any("single b=0" in warning for warning in check_protocol(gradients))
    nearest = nearest_in_shell(gradients, 6)
    assert not (nearest == np.arange(n_volumes)[:, None]).any()
