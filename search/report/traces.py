"""What every figure of the report is made of: traces and axes as plotly's JSON.

They are plain dictionaries, because a page of 120 studies has a thousand figures: plotly's own
classes take long for each and repeat a template in each. Fonts, grid and the colours of the page,
which has a light and a dark scheme, are added in the browser.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from anomtune.search.results.colours import COLOURS

#: Traces and layout, as ``Plotly.newPlot`` takes them.
Figure = dict[str, Any]
#: x and y.
Point = tuple[float | None, float | None]
#: Ends a line, so that one trace can hold many.
GAP: Point = (None, None)

COMPLETE, BEST, DEFAULT, RUNNING, FAILED = COLOURS[:5]
MUTED = COLOURS[-1]


def figure(traces: Sequence[Figure], x: str, y: str) -> Figure | None:
    """Returns a figure of the traces that have points, ``None`` if none has.

    Args:
        traces: What is drawn, the topmost last.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
    """
    shown = [trace for trace in traces if trace["x"]]
    if not shown:
        return None
    axes = {"xaxis": {"title": {"text": text(x)}}, "yaxis": {"title": {"text": text(y)}}}
    return {"data": shown, "layout": axes}


def line(
    name: str,
    points: Sequence[Point],
    colour: str,
    width: float = 2,
    **style: Any,
) -> Figure:
    """Returns a line through points, with a gap at each `GAP`.

    Args:
        name: In the legend.
        points: x and y.
        colour: Of the line.
        width: In pixels.
        style: Further keys of the line: ``dash``, ``shape``.
    """
    return {
        "type": "scatter",
        "mode": "lines",
        "name": text(name),
        "x": [x for x, _ in points],
        "y": [y if y is None else digits(y) for _, y in points],
        "line": {"color": colour, "width": width, **style},
        "hovertemplate": "%{y:.3f}",
    }


def markers(
    name: str,
    points: Sequence[tuple[Any, float, Any]],
    colour: str,
    symbol: str = "circle",
    size: float = 7,
) -> Figure:
    """Returns separate points.

    Args:
        name: In the legend.
        points: x, y, and what the hover calls the point.
        colour: Of the points.
        symbol: Plotly's name of their shape.
        size: In pixels.
    """
    return {
        "type": "scatter",
        "mode": "markers",
        "name": text(name),
        "x": [text(x) if isinstance(x, str) else x for x, _, _ in points],
        "y": [digits(y) for _, y, _ in points],
        "customdata": [text(label) for _, _, label in points],
        "marker": {"color": colour, "symbol": symbol, "size": size},
        "hovertemplate": "%{customdata}: %{y:.3f} at %{x}",
    }


def digits(value: float) -> float:
    """Returns a figure without the digits that nobody sees and that fill the page."""
    return round(value, 4)


def text(label: object) -> str:
    """Returns a string as plotly shows it unchanged: it reads tags in whatever it draws."""
    return html.escape(str(label), quote=False)
