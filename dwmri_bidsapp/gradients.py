"""The gradient table of a run: b-values, directions, shells and who is whose neighbour in q-space.

Frame: the vectors stay in the frame of the file, which for BIDS is FSL's (the axes of the image).
Nothing here needs another frame: only angles between directions of the same run are used.

Axis letters: V volumes, S shells, n neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BadDataError

B0_THRESHOLD = 50.0
"""b-values up to this are b=0 (s/mm²)."""

MIN_DIRECTIONS = 6
"""A diffusion tensor has six unknowns."""

FEW_DIRECTIONS = 15
"""Below this the neighbours in q-space are far apart, and little can be gained."""

_SAME_DIRECTION_COSINE = np.cos(np.deg2rad(1.0))


@dataclass(frozen=True, eq=False)
class Gradients:
    """b-values, unit directions and shells of one run.

    Build it with :meth:`from_arrays` or :func:`load_gradients`, which check and normalise.

    Attributes
    ----------
    bvals : (V,) float
        b-values in s/mm², as they were given.
    bvecs : (V, 3) float
        Unit directions in the frame of the file; zeros for b=0 volumes.
    shell : (V,) int
        Index of the shell of each volume. 0 is the b=0 shell, used or not.
    shell_bvals : (S,) float
        Mean b-value of each shell in s/mm², rounded to 5, rising; 0 where no volume is b=0.
    warnings : tuple of str
        What was odd about the table but usable.
    """

    bvals: NDArray[np.float64]
    bvecs: NDArray[np.float64]
    shell: NDArray[np.int64]
    shell_bvals: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def n_volumes(self) -> int:
        """Number of volumes."""
        return len(self.bvals)

    @property
    def b0(self) -> NDArray[np.bool_]:
        """Mask of the b=0 volumes, (V,)."""
        return self.shell == 0

    @property
    def dwi(self) -> NDArray[np.bool_]:
        """Mask of the diffusion-weighted volumes, (V,)."""
        return self.shell > 0

    def shell_name(self, shell: int) -> str:
        """Name of a shell in tables and figures: ``b0``, ``b1000``."""
        return f"b{self.shell_bvals[shell]:g}" if shell else "b0"

    @classmethod
    def from_arrays(cls, bvals: ArrayLike, bvecs: ArrayLike, b0_threshold: float = B0_THRESHOLD) -> Gradients:
        """Check a gradient table, normalise its vectors and find its shells.

        Parameters
        ----------
        bvals : (V,) array
            b-values in s/mm².
        bvecs : (V, 3) array
            Directions; anything may stand at b=0.
        b0_threshold
            b-values up to this are b=0 (s/mm²).

        Raises
        ------
        BadDataError
            Wrong shapes, values that are not finite, negative b-values, or a
            diffusion-weighted volume without a direction.
        """
        b_v = np.asarray(bvals, dtype=np.float64)
        g_v3 = np.array(bvecs, dtype=np.float64)
        if b_v.ndim != 1 or g_v3.shape != (b_v.size, 3):
            raise BadDataError(
                f"expected b-values (V,) and directions (V, 3), found {b_v.shape} and {g_v3.shape}"
            )
        _refuse_volumes(~np.isfinite(b_v), "b-values that are not finite")
        _refuse_volumes(b_v < 0, "negative b-values")
        dwi = b_v > b0_threshold
        _refuse_volumes(dwi & ~np.isfinite(g_v3).all(axis=1), "directions that are not finite")
        norm_v = np.linalg.norm(g_v3, axis=1)
        _refuse_volumes(
            dwi & (norm_v < 1e-3), f"a direction of length zero at a b-value above {b0_threshold:g} s/mm²"
        )
        g_v3[dwi] /= norm_v[dwi, None]
        g_v3[~dwi] = 0.0
        warnings = _warn_about_lengths(dwi & (np.abs(norm_v - 1) > 0.01))
        shell, shell_bvals = _find_shells(b_v, b0_threshold)
        return cls(b_v, g_v3, shell, shell_bvals, warnings)

    def select(self, volumes: NDArray[np.bool_] | NDArray[np.integer]) -> Gradients:
        """Return the table of some volumes (a mask or indices); shells keep their numbers."""
        return Gradients(
            self.bvals[volumes], self.bvecs[volumes], self.shell[volumes], self.shell_bvals, self.warnings
        )


def load_gradients(
    bval_file: str | Path, bvec_file: str | Path, n_volumes: int, b0_threshold: float = B0_THRESHOLD
) -> Gradients:
    """Read an FSL/BIDS pair of files; the vectors may stand in three rows or in three columns.

    Parameters
    ----------
    bval_file, bvec_file
        Text files of numbers.
    n_volumes
        Number of volumes of the image they belong to.
    b0_threshold
        b-values up to this are b=0 (s/mm²).

    Raises
    ------
    BadDataError
        A file is missing or unreadable, is not numbers, or does not fit the image.
    """
    b_v = _read_numbers(Path(bval_file)).ravel()
    if b_v.size != n_volumes:
        raise BadDataError(
            f"{bval_file}: expected {n_volumes} b-values, one for each volume of the image, found {b_v.size}",
            "the file belongs to another image, or the image was truncated",
        )
    table = _read_numbers(Path(bvec_file))
    if table.shape == (3, n_volumes):
        g_v3 = table.T
    elif table.shape == (n_volumes, 3):
        g_v3 = table
    else:
        rows, columns = table.shape
        raise BadDataError(
            f"{bvec_file}: expected 3 rows of {n_volumes} numbers, found {rows} rows of {columns}",
            "the file belongs to another image, or the image was truncated",
        )
    try:
        return Gradients.from_arrays(b_v, g_v3, b0_threshold)
    except BadDataError as error:
        raise BadDataError(f"{bval_file}, {bvec_file}: {error.message}", error.hint) from error


def holds_b0_only(bval_file: str | Path, n_volumes: int, b0_threshold: float = B0_THRESHOLD) -> bool:
    """Tell whether a file holds a b-value for each of some volumes, and none above the threshold (s/mm²)."""
    try:
        b_v = _read_numbers(Path(bval_file))
    except BadDataError:
        return False
    return b_v.size == n_volumes and bool((b_v <= b0_threshold).all())


def are_of_one_image(bval_file: str | Path, bvec_file: str | Path) -> bool:
    """Tell whether two files hold as many b-values as directions."""
    try:
        n_volumes = _read_numbers(Path(bval_file)).size
        return _read_numbers(Path(bvec_file)).shape in ((3, n_volumes), (n_volumes, 3))
    except BadDataError:
        return False


def check_protocol(gradients: Gradients) -> list[str]:
    """Refuse what cannot be denoised, and say what will be denoised badly.

    Returns
    -------
    list of str
        Warnings, the table's own included; empty for a good protocol.

    Raises
    ------
    BadDataError
        A single volume, no b=0 volume, or fewer than six distinct directions.
    """
    if gradients.n_volumes < 2:
        raise BadDataError("expected a series of volumes, found a single one", "leave this run out")
    if not gradients.b0.any():
        raise BadDataError(
            f"expected at least one b=0 volume, found a lowest b-value of {gradients.bvals.min():g} s/mm²",
            "raise --b0-threshold if that volume is meant as b=0",
        )
    n_directions = count_directions(gradients)
    if n_directions < MIN_DIRECTIONS:
        raise BadDataError(
            f"expected at least {MIN_DIRECTIONS} distinct directions, found {n_directions} "
            f"(highest b-value {gradients.bvals.max():g} s/mm²)",
            "there is too little to predict a volume from; leave this run out",
        )
    return [*gradients.warnings, *_weak_points(gradients, n_directions)]


def direction_cosines(gradients: Gradients) -> NDArray[np.float64]:
    """Return |g_i . g_j| for all pairs of volumes, (V, V); zero wherever one is b=0.

    The absolute value, because a signal is the same along a direction and against it.
    """
    return np.clip(np.abs(gradients.bvecs @ gradients.bvecs.T), 0.0, 1.0)


def count_directions(gradients: Gradients) -> int:
    """Count the directions of the diffusion-weighted volumes that are more than 1° apart."""
    same = direction_cosines(gradients) > _SAME_DIRECTION_COSINE
    repeats_an_earlier_one = np.tril(same, k=-1).any(axis=1)
    return int((gradients.dwi & ~repeats_an_earlier_one).sum())


def nearest_in_shell(gradients: Gradients, n: int) -> NDArray[np.int64]:
    """Find the ``n`` nearest volumes of each volume's own shell, nearest first.

    Nearest means the smallest angle, opposite directions being the same; in the b=0 shell it
    means the smallest distance in time. Ties go to the earlier volume. Where a shell has fewer than
    ``n`` other volumes they are repeated in turn; where it has none, the shell that is
    nearest in b-value stands in (a diffusion-weighted one, if there is another).

    Returns
    -------
    (V, n) int array
        Indices of volumes; a row never holds its own index.

    Raises
    ------
    BadDataError
        There is only one volume.
    """
    if gradients.n_volumes < 2:
        raise BadDataError("expected a series of volumes, found a single one")
    cosines = direction_cosines(gradients)
    nearest = np.empty((gradients.n_volumes, n), dtype=np.int64)
    for volume in range(gradients.n_volumes):
        others = _candidates(gradients, volume)
        if gradients.shell[volume] == 0 or gradients.shell[others[0]] == 0:
            distance = np.abs(others - volume).astype(np.float64)
        else:
            # Rounded, so that equal angles are ties in spite of floating point.
            distance = -np.round(cosines[volume, others], 9)
        nearest[volume] = np.resize(others[np.argsort(distance, kind="stable")], n)
    return nearest


def _candidates(gradients: Gradients, volume: int) -> NDArray[np.int64]:
    """Return the other volumes of this volume's shell, or of the shell that stands in for it."""
    shell = gradients.shell
    others = np.flatnonzero(shell == shell[volume])
    others = others[others != volume]
    if others.size:
        return others
    present = [s for s in np.unique(shell) if s != shell[volume]]
    diffusion_weighted = [s for s in present if s > 0] or present
    gap = [abs(gradients.shell_bvals[s] - gradients.shell_bvals[shell[volume]]) for s in diffusion_weighted]
    return np.flatnonzero(shell == diffusion_weighted[int(np.argmin(gap))])


def _find_shells(
    b_v: NDArray[np.float64], b0_threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cluster b-values: a shell ends at a gap of 50 s/mm² (4% above 1250), or when 10% wide."""
    shell = np.zeros(b_v.size, dtype=np.int64)
    dwi = b_v > b0_threshold
    first = last = -np.inf
    current = 0
    for volume in np.argsort(b_v, kind="stable"):
        b = b_v[volume]
        if not dwi[volume]:
            continue
        # The width is bounded too: a ramp of b-values must not become one shell.
        if b - last > max(50.0, 0.04 * b) or b - first > max(100.0, 0.1 * first):
            current, first = current + 1, b
        shell[volume], last = current, b
    means = [b_v[shell == s].mean() if (shell == s).any() else 0.0 for s in range(current + 1)]
    return shell, 5.0 * np.round(np.asarray(means) / 5.0)


def _weak_points(gradients: Gradients, n_directions: int) -> list[str]:
    """List what makes a usable protocol a weak one."""
    found = []
    if n_directions < FEW_DIRECTIONS:
        found.append(f"only {n_directions} distinct directions: expect little gain below {FEW_DIRECTIONS}")
    if gradients.b0.sum() == 1:
        found.append("a single b=0 volume: no other volume of its kind to predict it from")
    sizes = np.bincount(gradients.shell, minlength=len(gradients.shell_bvals))
    lonely = [f"{gradients.shell_bvals[s]:g}" for s in range(1, len(sizes)) if sizes[s] == 1]
    if lonely:
        found.append(f"b-values with one volume each, predicted from others: {', '.join(lonely)} s/mm²")
    x, y, z = gradients.bvecs[gradients.dwi].T
    if np.linalg.matrix_rank(np.stack([x * x, y * y, z * z, x * y, x * z, y * z]), tol=1e-2) < 6:
        found.append("the directions do not span a diffusion tensor (coplanar?): FA and MD mean nothing")
    return found


def _warn_about_lengths(off_v: NDArray[np.bool_]) -> tuple[str, ...]:
    if not off_v.any():
        return ()
    return (
        f"directions not of length 1 in volumes {_name_volumes(np.flatnonzero(off_v))}: "
        "normalised for the computation, kept as they are in the output files",
    )


def _refuse_volumes(bad_v: NDArray[np.bool_], what: str) -> None:
    if bad_v.any():
        raise BadDataError(f"{what} in volumes {_name_volumes(np.flatnonzero(bad_v))} (counted from 0)")


def _name_volumes(volumes: Iterable[int]) -> str:
    names = [str(v) for v in volumes]
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])}, ... ({len(names)} in all)"


def _read_numbers(path: Path) -> NDArray[np.float64]:
    """Read a rectangular table of numbers, separated by white space; (rows, columns)."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise BadDataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path}: expected a text file of numbers, found binary data") from error
    rows = [row for row in rows if row]
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        found = f"rows of {widths} numbers" if widths else "nothing"
        raise BadDataError(f"{path}: expected rows of equal length, found {found}")
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise BadDataError(f"{path}: expected numbers only ({error})") from error
