"""Intervals of shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from anomtune.search.metrics.proportion import proportion_interval


@pytest.mark.parametrize("total", [1, 2, 40])
def test_intervals_are_scipys(total):
    counts = np.arange(total + 1)
    low, high = proportion_interval(counts, total)
    for count in counts:
        expected = binomtest(int(count), total).proportion_ci(method="exact")
        assert (low[count], high[count]) == pytest.approx(tuple(expected), abs=1e-9)
    assert low[0] == 0
    assert high[-1] == 1
