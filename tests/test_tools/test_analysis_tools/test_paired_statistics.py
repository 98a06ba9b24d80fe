"""Means, intervals and tests, against numbers from tables and from enumeration."""

import itertools
import math
import sys

import pytest

from rawkd_mm.analysis.paired_statistics import MissingScipyError, compare_paired, mean_interval

# 97.5 % quantiles of Student's t with 1 to 4 degrees of freedom, from a printed table
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@pytest.mark.parametrize('count', QUANTILES)
def test_interval_is_students(count):
    values = [60.0, 61.5, 62.1, 59.7, 64.0][:count]
    mean = sum(values) / count
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = QUANTILES[count] * std / math.sqrt(count)
    assert mean_interval(values) == pytest.approx((mean, std, mean - half, mean + half), rel=1e-4)


def test_one_value_has_no_interval():
    assert mean_interval([3.0]) == (3.0, None, None, None)


def test_pairs_are_of_the_same_seed():
    baseline = {'0': 60.0, '1': 70.0, '2': 80.0, '9': 0.0}
    comparison = compare_paired({'2': 81.0, '0': 62.0, '1': 73.0, '7': 5.0}, baseline)
    assert comparison.pairs == 3
    assert comparison.difference.mean == pytest.approx(2)
    assert comparison.difference.std == pytest.approx(1)  # of 1, 2, 3, not of 60 to 81
    # t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    t = 2 * math.sqrt(3)
    assert comparison.t_test == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert comparison.wilcoxon == pytest.approx(2 / 2**3)  # all of one sign


@pytest.mark.parametrize(
    'differences', [(1.0, -0.5, 2.0, 3.0, 0.7), (-1.0, -2.0, 3.0, -4.0, 0.1, -0.3)]
)
def test_wilcoxon_is_that_of_all_signs(differences):
    ranks = [sorted(map(abs, differences)).index(abs(d)) + 1 for d in differences]

    def statistic(signs):
        return sum(rank for rank, sign in zip(ranks, signs) if sign > 0)

    centre = sum(ranks) / 2
    seen = abs(statistic(differences) - centre)
    all_signs = list(itertools.product((-1, 1), repeat=len(ranks)))
    extreme = sum(abs(statistic(signs) - centre) >= seen for signs in all_signs)
    values = {str(i): d for i, d in enumerate(differences)}
    comparison = compare_paired(values, dict.fromkeys(values, 0.0))
    assert comparison.wilcoxon == pytest.approx(extreme / len(all_signs))


def test_what_cannot_be_tested_has_no_p():
    assert compare_paired({'0': 1.0}, {'1': 1.0}) is None
    one = compare_paired({'0': 1.0}, {'0': 3.0})
    assert one == (1, (-2.0, None, None, None), None, None)
    same = compare_paired({'0': 1.0, '1': 2.0}, {'0': 1.0, '1': 2.0})
    assert same.t_test is None and same.wilcoxon is None and same.difference.mean == 0


def test_without_scipy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy.stats', None)
    monkeypatch.delattr('scipy.stats', raising=False)
    with pytest.raises(MissingScipyError, match=r'pip install "rawkd_mm\[analysis\]"'):
        mean_interval([1.0, 2.0])
