"""What several seeds tell of a mean, and of the difference to a baseline with the same seeds."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class MissingScipyError(Exception):
    """SciPy is not installed; the message says how to install it."""


class Interval(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: The mean.
        std: The sample standard deviation; None with one value.
        low: Lower end of the 95 % confidence interval of the mean, by Student's t; None with one value.
        high: Its upper end.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None


class Comparison(NamedTuple):
    """Values minus those of a baseline with the same seeds.

    Attributes:
        pairs: How many seeds both have.
        difference: Of these.
        t_test: p of the paired t-test, two-sided; None with one pair, or if all differences are 0.
        wilcoxon: p of Wilcoxon's signed-rank test, two-sided; None likewise.
    """

    pairs: int
    difference: Interval
    t_test: float | None
    wilcoxon: float | None


def import_scipy_stats():
    """Import SciPy's statistics.

    Returns:
        module: ``scipy.stats``.

    Raises:
        MissingScipyError: If it is not installed.
    """
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingScipyError(
            f'confidence intervals and tests need SciPy ({error}). Install it: '
            'pip install "rawkd_mm[analysis]", or pip install scipy'
        ) from error
    return scipy.stats


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Give the mean over seeds and how far it can be trusted.

    Args:
        values (Sequence[float]): One for each seed, at least one.
        level (float): Of the confidence interval. Defaults to 0.95.

    Returns:
        Interval: In the unit of the values.

    Raises:
        MissingScipyError: If SciPy is not installed.
    """
    mean, count = statistics.mean(values), len(values)
    if count == 1:
        return Interval(mean, None, None, None)
    std = statistics.stdev(values)
    quantile = float(import_scipy_stats().t.ppf((1 + level) / 2, count - 1))
    half = quantile * std / math.sqrt(count)
    return Interval(mean, std, mean - half, mean + half)


def compare_paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> Comparison | None:
    """Compare values with those of a baseline, seed by seed.

    Args:
        values (Mapping[str, float]): Seed to value.
        baseline (Mapping[str, float]): The same, of the baseline.

    Returns:
        Comparison | None: Of the seeds that both have; None if there are none.

    Raises:
        MissingScipyError: If SciPy is not installed.
    """
    seeds = [seed for seed in values if seed in baseline]
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    interval = mean_interval(differences)
    if len(seeds) < 2 or not any(differences):
        return Comparison(len(seeds), interval, None, None)
    stats = import_scipy_stats()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of differences that are all the same: p is 0
        t_test = stats.ttest_rel([values[s] for s in seeds], [baseline[s] for s in seeds]).pvalue
        wilcoxon = stats.wilcoxon(differences).pvalue
    return Comparison(len(seeds), interval, _number(t_test), _number(wilcoxon))


def _number(p: float) -> float | None:
    return None if math.isnan(p) else float(p)
