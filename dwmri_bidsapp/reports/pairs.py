"""Methods against each other over participants: paired differences, their intervals and effect sizes.

Axis letters: r runs, p participants, m measures, k methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..figures.methods import ACQUIRED
from .collect import RunRecord
from .glossary import describe, order_of, split_name

OWN_METHOD = "denoised"


@dataclass(frozen=True, eq=False)
class MeasureTable:
    """Every measure of every run with every method.

    Attributes
    ----------
    labels : (r)
        Labels of the runs.
    participants : (r)
        To whom they belong.
    methods : (k)
        ``"acquired"`` first, then the application's own, then the others.
    measures : (m)
        Base names, without ``_before`` and ``_after``.
    values : (r, m, k) float
        NaN where there is none.
    """

    labels: list[str]
    participants: list[str]
    methods: list[str]
    measures: list[str]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """How a method differs from a reference in one measure, over participants.

    Attributes
    ----------
    n
        Participants that have both; the runs of each are averaged first.
    reference, method
        Means over these.
    difference, low, high
        Mean of the paired differences and its 95% interval (Student's t); no interval for a single one.
    effect, effect_low, effect_high
        The difference over its standard deviation, corrected for few participants (Hedges), and its
        approximate 95% interval; None for fewer than three.
    improved
        Participants in whom the method is the better one; None where no direction is better.
    """

    n: int
    reference: float
    method: float
    difference: float
    low: float | None
    high: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    improved: int | None


def tabulate(records: Sequence[RunRecord], tables: Sequence[Mapping[str, Any]]) -> MeasureTable:
    """Arrange the measures of all records; the state before denoising is a method called ``acquired``.

    Parameters
    ----------
    records
        One for each run and method.
    tables
        Names and numbers of each record.
    """
    labels = list(dict.fromkeys(record.label for record in records))
    found = sorted({record.method for record in records}, key=lambda name: (name != OWN_METHOD, name))
    methods = [ACQUIRED, *found]
    measures = sorted({split_name(name)[0] for table in tables for name in table}, key=order_of)
    values = np.full((len(labels), len(measures), len(methods)), np.nan)
    row = {label: i for i, label in enumerate(labels)}
    column = {name: i for i, name in enumerate(measures)}
    owner: dict[str, str] = {}
    pairs = zip(records, tables, strict=True)
    # the run's own record has the last word on what was acquired: others may be left from earlier data
    for record, table in sorted(pairs, key=lambda pair: pair[0].method == OWN_METHOD):
        owner[record.label] = record.entities["participant_id"]
        for name, value in table.items():
            base, when = split_name(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                method = ACQUIRED if when == "before" else record.method
                values[row[record.label], column[base], methods.index(method)] = value
    return MeasureTable(labels, [owner[label] for label in labels], methods, measures, values)


def compare(
    table: MeasureTable, reference: str, method: str, chosen_r: NDArray[np.bool_] | None = None
) -> dict[str, Pair]:
    """Compare a method with a reference in every measure that both have.

    Parameters
    ----------
    table
        From :func:`tabulate`.
    reference, method
        Names of methods.
    chosen_r
        The runs that count; all where not given.
    """
    a, b = table.methods.index(reference), table.methods.index(method)
    rows = np.ones(len(table.labels), dtype=bool) if chosen_r is None else chosen_r
    pairs_rm2 = table.values[rows][:, :, [a, b]]
    pairs_rm2 = np.where(np.isfinite(pairs_rm2).all(axis=2, keepdims=True), pairs_rm2, np.nan)
    pairs_pm2 = _mean_by_participant(pairs_rm2, np.asarray(table.participants)[rows])
    found = {}
    for m, measure in enumerate(table.measures):
        known_p2 = pairs_pm2[:, m][np.isfinite(pairs_pm2[:, m, 0])]
        if len(known_p2):
            found[measure] = _pair(known_p2, describe(measure).better)
    return found


def _mean_by_participant(values_rm2: NDArray[np.float64], owners_r: NDArray[Any]) -> NDArray[np.float64]:
    """Runs of one participant are no independent observations: average them, those that are there."""
    names, index_r = np.unique(owners_r, return_inverse=True)
    known = np.isfinite(values_rm2)
    sums, counts = (np.zeros((len(names), *values_rm2.shape[1:])) for _ in range(2))
    np.add.at(sums, index_r, np.where(known, values_rm2, 0))
    np.add.at(counts, index_r, known)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _pair(known_p2: NDArray[np.float64], better: str) -> Pair:
    n = len(known_p2)
    difference_p = known_p2[:, 1] - known_p2[:, 0]
    mean = float(difference_p.mean())
    low = high = effect = effect_low = effect_high = None
    spread = float(difference_p.std(ddof=1)) if n > 1 else 0.0
    if spread > 0:
        half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
        low, high = mean - half, mean + half
        # The spread of two differences says nothing about the effect's size.
        if n > 2:
            effect = mean / spread * (1 - 3 / (4 * (n - 1) - 1))
            error = 1.96 * math.sqrt(1 / n + effect**2 / (2 * n))
            effect_low, effect_high = effect - error, effect + error
    wins = {"higher": difference_p > 0, "lower": difference_p < 0}.get(better)
    return Pair(
        n, float(known_p2[:, 0].mean()), float(known_p2[:, 1].mean()), mean, low, high, effect, effect_low,
        effect_high, None if wins is None else int(wins.sum()),
    )  # fmt: skip
