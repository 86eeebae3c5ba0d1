"""The interval of a share of images: exact, so that few images promise nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

Array = npt.NDArray[np.float64]


def proportion_interval(counts: npt.NDArray[np.integer] | int, total: int) -> tuple[Array, Array]:
    """Returns the 95 % intervals of shares (Clopper and Pearson, Biometrika 26, 1934).

    As ``scipy.stats.binomtest(k, n).proportion_ci(method="exact")``, of many counts at once. It
    holds the true share at least 95 times of 100, whatever it is.

    Args:
        counts: ``(...)``, each in [0, total].
        total: Of how many, at least one.

    Returns:
        Lower and upper ends ``(...)``, in [0, 1].
    """
    k = np.asarray(counts, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        low = np.where(k > 0, betaincinv(np.maximum(k, 1), total - k + 1, 0.025), 0.0)
        high = np.where(k < total, betaincinv(k + 1, np.maximum(total - k, 1), 0.975), 1.0)
    return low, high
