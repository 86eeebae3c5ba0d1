"""Times as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns a time in words: ``2 h 05 min``, ``3 min 20 s``, ``45 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours and not minutes:
        return f"{rest} s"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
