"""Figures as people read them."""

from __future__ import annotations


def figure(value: float | None) -> str:
    """Returns an AUROC with three digits, a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Returns the interval of an AUROC, nothing where there is none."""
    return "" if low is None or high is None else f"{figure(low)}-{figure(high)}"


def signed(value: float) -> str:
    """Returns a difference of AUROCs; what rounds to nothing has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}"
