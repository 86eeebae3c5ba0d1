"""Figures as people read them."""

from __future__ import annotations


def figure(value: float | None) -> str:
    """Returns an AUROC with three digits, a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """Returns a difference of AUROCs; what rounds to nothing has no minus."""
    return f"{round(value, 3) + 0.0:+.3f}"
