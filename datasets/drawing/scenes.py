"""The five products of the built-in dataset: three textures and two objects.

Every scene draws a normal product from ``rng``, which holds all that varies from piece to piece;
with a defect named it adds that defect, drawn from ``flaw``, and changes nothing else. ``strength``
in [0, 1] goes from subtle to plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from anomtune.datasets.drawing.shapes import (
    Field,
    blob,
    box,
    cover,
    disc,
    grid,
    noise,
    paint,
    stroke,
)

SIZE = 128

Random = np.random.Generator
Point = tuple[float, float]
Scene = Callable[[Random, str | None, Random, float], Field]


@dataclass(frozen=True, slots=True)
class Product:
    """A scene and the defects that it can draw."""

    draw: Scene
    defects: tuple[str, ...]


def weave(rng: Random, defect: str | None, flaw: Random, strength: float) -> Field:
    """Draws plain woven cloth."""
    x0, y0 = grid(SIZE, SIZE)
    turn, period = np.deg2rad(rng.normal(0, 1.5)), 5.4 * rng.normal(1, 0.01)
    sag = [0.6 * noise(SIZE, SIZE, 40.0, rng) for _ in range(2)]
    x = x0 * np.cos(turn) - y0 * np.sin(turn) + sag[0] + rng.uniform(0, 50)
    y = x0 * np.sin(turn) + y0 * np.cos(turn) + sag[1] + rng.uniform(0, 50)
    cx, cy = flaw.uniform(24, SIZE - 24, size=2)
    if defect == "pulled":
        reach = flaw.uniform(10, 15)
        inside = np.clip(1 - ((x0 - cx) ** 2 + (y0 - cy) ** 2) / reach**2, 0, 1)
        pull = (5 + 6 * strength) * inside**1.5
        way = flaw.uniform(0, 2 * np.pi)
        x, y = x + pull * np.cos(way), y + pull * np.sin(way)
    u, v = x / period, y / period
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    across, along = u - column - 0.5, v - row - 0.5
    warp_above = (column + row) % 2 == 0

    def thread(side: Field, length: Field) -> Field:
        body = np.sqrt(np.clip(1 - (1.9 * side) ** 2, 0, 1))
        return np.asarray(body * (0.72 + 0.28 * np.cos(np.pi * length)))

    tint = rng.normal(1, 0.03, size=(2, 64))
    warp = thread(across, along) * tint[0][column % 64]
    weft = thread(along, across) * tint[1][row % 64]
    if defect == "broken_thread":
        mine = column == int(np.floor(u[int(cy), int(cx)]))
        gap = mine & (np.abs(v - v[int(cy), int(cx)]) < 1.9 + 5 * strength)
        # Without its warp the weft lies bare and a little slack.
        weft = np.where(gap & warp_above, 0.45 * weft, weft)
        warp_above = warp_above & ~gap
    cloth = np.where(
        warp_above[..., None],
        warp[..., None] * np.array([96, 124, 158.0]),
        weft[..., None] * np.array([204, 194, 172.0]),
    )
    canvas = 14 + cloth + 4 * noise(SIZE, SIZE, 1.5, rng)[..., None]
    if defect == "stain":
        spot = blob(x0, y0, (cx, cy), 6 + 8 * flaw.random(), flaw)
        paint(canvas, spot, canvas * np.array([0.62, 0.5, 0.36]), 0.5 + 0.5 * strength)
    return np.asarray(canvas)


def stone(rng: Random, defect: str | None, flaw: Random, strength: float) -> Field:
    """Draws polished speckled stone."""
    x, y = grid(SIZE, SIZE)
    tone = 148 + 9 * rng.standard_normal() + 9 * noise(SIZE, SIZE, 26.0, rng)
    base = tone[..., None] * np.array([1.03, 0.98, 0.92])
    canvas = base + 6 * noise(SIZE, SIZE, 2.0, rng)[..., None]
    for scale, level, colour in (
        (3.0, 1.25, (186, 180, 172)),
        (3.5, 1.35, (146, 118, 102)),
        (2.5, 1.45, (104, 100, 102)),
    ):
        speck = np.clip((noise(SIZE, SIZE, scale, rng) - level - 0.08 * rng.random()) / 0.3, 0, 1)
        paint(canvas, speck, colour, 0.85)
    cx, cy = flaw.uniform(22, SIZE - 22, size=2)
    if defect == "crack":
        angle = flaw.uniform(0, 2 * np.pi)
        points = [(cx, cy)]
        for _ in range(int(5 + 12 * flaw.random())):
            angle += flaw.normal(0, 0.45)
            step = flaw.uniform(3, 6)
            px, py = points[-1]
            points.append((px + step * np.cos(angle), py + step * np.sin(angle)))
        line = stroke(x, y, points, 1.6 + 1.4 * strength)
        paint(canvas, line, (40, 36, 34), 0.6 + 0.4 * strength)
    elif defect == "pit":
        radius = 3.5 + 4 * strength
        paint(canvas, disc(x, y, cx + 1.2, cy + 1.2, radius), (226, 220, 210), 0.7)
        paint(canvas, disc(x, y, cx, cy, radius), (58, 52, 48), 0.9)
    elif defect == "worn":
        spot = blob(x, y, (cx, cy), 9 + 9 * flaw.random(), flaw)
        paint(canvas, spot, base * 1.2 + 8, 0.6 + 0.4 * strength)
    return np.asarray(canvas)


def grain(rng: Random, defect: str | None, flaw: Random, strength: float) -> Field:
    """Draws planed wood."""
    x, y = grid(SIZE, SIZE)
    lean = np.deg2rad(rng.normal(0, 2.5))
    bend = 3.5 * noise(SIZE, SIZE, (100.0, 34.0), rng)
    across = (x + np.tan(lean) * y + bend) / 15 * rng.normal(1, 0.08) + rng.uniform(0, 9)
    phase = across - np.floor(across)
    # Early wood darkens slowly towards the sharp edge of the late wood.
    ring = np.where(phase < 0.85, (phase / 0.85) ** 2.2, (1 - phase) / 0.15)
    fibre = noise(SIZE, SIZE, (26.0, 1.2), rng)
    light = 1 - 0.26 * ring + 0.045 * fibre + 0.04 * noise(SIZE, SIZE, 45.0, rng)
    canvas = light[..., None] * (np.array([206, 160, 108.0]) + rng.normal(0, 4))
    pores = np.clip(noise(SIZE, SIZE, (7.0, 1.0), rng) - 2.0, 0, 1)
    paint(canvas, pores, (92, 62, 38), 0.7)
    cx, cy = flaw.uniform(20, SIZE - 20, size=2)
    if defect == "scratch":
        angle, long = flaw.uniform(-0.9, 0.9), flaw.uniform(9, 26)
        dx, dy = long * np.cos(angle), long * np.sin(angle)
        middle = (cx + flaw.normal(0, 2), cy + flaw.normal(0, 2))
        line = stroke(x, y, [(cx - dx, cy - dy), middle, (cx + dx, cy + dy)], 1.5 + strength)
        paint(canvas, line, (240, 216, 178), 0.55 + 0.4 * strength)
    elif defect == "wormhole":
        for _ in range(int(flaw.integers(1, 4))):
            px, py = cx + flaw.normal(0, 7), cy + flaw.normal(0, 7)
            paint(canvas, disc(x, y, px, py, 1.3 + 2 * strength), (46, 30, 20), 0.9)
    elif defect == "burn":
        spot = blob(x, y, (cx, cy), 5 + 9 * flaw.random(), flaw)
        paint(canvas, spot, canvas * np.array([0.5, 0.44, 0.42]), 0.4 + 0.5 * strength)
    return np.asarray(canvas)


def washer(rng: Random, defect: str | None, flaw: Random, strength: float) -> Field:
    """Draws a turned steel washer with a notch, on a dark mat."""
    x, y = grid(SIZE, SIZE)
    cx, cy = SIZE / 2 + rng.normal(0, 3.5, size=2)
    outer, inner = 47 + rng.normal(0, 0.5), 20 + rng.normal(0, 0.4)
    dx, dy = x - cx, y - cy
    radius, theta = np.hypot(dx, dy), np.arctan2(dy, dx)
    mat = 44 + 5 * noise(SIZE, SIZE, 2.2, rng) + 3 * noise(SIZE, SIZE, 50.0, rng)
    canvas = mat[..., None] * np.array([0.92, 1.0, 1.1])
    turn = rng.uniform(0, 2 * np.pi)
    ring = cover(np.maximum(radius - outer, inner - radius))
    notch_x, notch_y = cx + outer * np.cos(turn), cy + outer * np.sin(turn)
    ring = ring * (1 - disc(x, y, notch_x, notch_y, 5.0))
    away = turn + flaw.uniform(0.7, 2 * np.pi - 0.7)
    if defect == "chip":
        rim, sign = (outer, 1) if flaw.random() < 0.7 else (inner, -1)
        bite = 6 + 5 * strength
        place = rim + sign * 0.35 * bite
        ragged = bite * (1 + 0.1 * noise(SIZE, SIZE, 3.0, flaw))
        px, py = cx + place * np.cos(away), cy + place * np.sin(away)
        ring = ring * (1 - cover(np.hypot(x - px, y - py) - ragged))
    shadow = cover((np.hypot(dx - 3, dy - 4) - outer - 1.5) / 3)
    paint(canvas, shadow, (16, 18, 22), 0.65)
    # Turned metal: highlights fan out from the centre, the tool leaves fine rings.
    lamp = rng.uniform(-0.35, 0.35)
    fan = 26 * np.cos(2 * (theta - lamp - 0.6)) + 12 * np.cos(5 * (theta - lamp) + 1)
    rings = rng.normal(0, 1, 128)[np.clip(radius * 1.6, 0, 127).astype(int)]
    bevel = 30 * np.exp(-(((outer - radius) / 1.6) ** 2)) - 26 * np.exp(
        -(((radius - inner) / 1.6) ** 2)
    )
    steel = (156 + fan + 3.5 * rings + bevel + 3 * noise(SIZE, SIZE, 1.2, rng))[..., None]
    steel = steel * np.array([0.98, 1.0, 1.03])
    middle = 0.5 * (outer + inner)
    px, py = cx + middle * np.cos(away), cy + middle * np.sin(away)
    if defect == "scratch":
        angle, long = flaw.uniform(0, np.pi), flaw.uniform(8, 12)
        ux, uy = long * np.cos(angle), long * np.sin(angle)
        line = stroke(x, y, [(px - ux, py - uy), (px + ux, py + uy)], 1.4 + 1.2 * strength)
        shine = 250 if flaw.random() < 0.5 else 62
        paint(steel, line, (shine, shine, shine), 0.4 + 0.55 * strength)
    elif defect == "rust":
        spot = blob(x, y, (px, py), 4 + 6 * flaw.random(), flaw)
        crust = np.array([142, 84, 48.0]) + 16 * noise(SIZE, SIZE, 1.6, flaw)[..., None]
        paint(steel, spot, crust, 0.25 + 0.7 * strength)
    paint(canvas, ring, steel)
    return np.asarray(canvas)


# Parts of the board: x, y, width, height from its centre, colour.
_PARTS: tuple[tuple[float, float, float, float, tuple[int, int, int]], ...] = (
    (-27, -27, 12, 6, (52, 48, 46)),
    (-27, -15, 12, 6, (52, 48, 46)),
    (28, -27, 7, 12, (196, 164, 112)),
    (40, -27, 7, 12, (196, 164, 112)),
    (30, 22, 15, 8, (186, 52, 44)),
    (-30, 24, 8, 14, (74, 96, 150)),
)
_TRACES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-27, -27), (-10, -27), (-10, -14)),
    ((-27, -15), (-16, -15), (-5, -4)),
    ((28, -27), (28, -12), (14, 2)),
    ((40, -27), (40, 8), (30, 22)),
    ((30, 22), (8, 26), (4, 12)),
    ((-30, 24), (-12, 24), (-6, 12)),
)


_REACH = 22  # Half the side of the window that holds any part of the board.


def board(rng: Random, defect: str | None, flaw: Random, strength: float) -> Field:
    """Draws a small populated circuit board."""
    x0, y0 = grid(SIZE, SIZE)
    turn = np.deg2rad(rng.normal(0, 2.0))
    sx, sy = SIZE / 2 + rng.normal(0, 2, size=2)
    x = (x0 - sx) * np.cos(turn) + (y0 - sy) * np.sin(turn)
    y = (y0 - sy) * np.cos(turn) - (x0 - sx) * np.sin(turn)
    table = 178 + 4 * noise(SIZE, SIZE, 3.0, rng) + 10 * noise(SIZE, SIZE, 60.0, rng)
    canvas = table[..., None] * np.array([1.0, 0.99, 0.97])
    paint(canvas, box(x, y, (2.5, 3), (112, 92)), (88, 86, 84), 0.6)
    mask = (1 + 0.03 * noise(SIZE, SIZE, 2.0, rng))[..., None] * np.array([30, 98, 62.0])
    paint(canvas, box(x, y, (0, 0), (112, 92)), mask * rng.normal(1, 0.04))
    for points in _TRACES:
        paint(canvas, stroke(x, y, points, 1.8), (72, 142, 92), 0.9)

    def window(at: Point) -> tuple[slice, slice]:
        # Everything here is small: drawing within a window is ten times as fast.
        left, top = int(sx + at[0]) - _REACH, int(sy + at[1]) - _REACH
        return np.s_[max(top, 0) : top + 2 * _REACH, max(left, 0) : left + 2 * _REACH]

    def dot(at: Point, radius: float, colour: Sequence[float]) -> None:
        w = window(at)
        paint(canvas[w], disc(x[w], y[w], at[0], at[1], radius), colour)

    def slab(
        at: Point, size: Point, colour: Sequence[float] | Field, angle: float = 0, share: float = 1
    ) -> None:
        w = window(at)
        paint(canvas[w], box(x[w], y[w], at, size, angle), colour, share)

    for corner in ((-49, -39), (49, -39), (-49, 39), (49, 39)):
        dot(corner, 4.2, (206, 178, 104))
        dot(corner, 2.2, (150, 148, 146))
    for pin in ((-10 + 5 * i, side * 14.5) for i in range(5) for side in (-1, 1)):
        slab(pin, (2.2, 6), (198, 200, 204))
    tilt = rng.normal(0, 0.012)
    slab((0, 0), (29, 24), (38, 38, 42), tilt)
    dot((-10.5, 8), 1.5, (120, 120, 122))
    for line in range(3):
        slab((1, -5 + 4 * line), (rng.uniform(10, 14), 1.2), (98, 98, 100))
    victim = int(flaw.integers(len(_PARTS)))
    for number, (px, py, wide, high, colour) in enumerate(_PARTS):
        place = (px + rng.normal(0, 0.35), py + rng.normal(0, 0.35))
        angle, shade = rng.normal(0, 0.025), rng.normal(1, 0.05)
        end = (0.42 * wide, 0.0) if wide > high else (0.0, 0.42 * high)
        for sign in (-1, 1):
            dot((px + sign * end[0], py + sign * end[1]), 3.6, (196, 198, 200))
        if number == victim and defect == "missing":
            continue
        if number == victim and defect == "misplaced":
            way = flaw.uniform(0, 2 * np.pi)
            shift = 3.5 + 3.5 * strength
            place = (place[0] + shift * np.cos(way), place[1] + shift * np.sin(way))
            angle += flaw.choice([-1, 1]) * (0.3 + 0.5 * strength)
        slab(place, (wide, high), np.array(colour) * shade, angle)
        shine = (place[0] - 0.1 * wide, place[1] - 0.15 * high)
        slab(shine, (0.5 * wide, 0.25 * high), (235, 235, 235), angle, 0.22)
    if defect == "bridge":
        first = int(flaw.integers(4))
        side = float(flaw.choice([-1, 1]))
        ends = [(-10 + 5 * (first + i), side * (14.5 + flaw.normal(0, 1.2))) for i in (0, 1)]
        paint(canvas, stroke(x, y, ends, 4.4 + 3 * strength), (204, 206, 210), 0.95)
    return np.asarray(canvas)


PRODUCTS: dict[str, Product] = {
    "board": Product(board, ("bridge", "misplaced", "missing")),
    "grain": Product(grain, ("burn", "scratch", "wormhole")),
    "stone": Product(stone, ("crack", "pit", "worn")),
    "washer": Product(washer, ("chip", "rust", "scratch")),
    "weave": Product(weave, ("broken_thread", "pulled", "stain")),
}
