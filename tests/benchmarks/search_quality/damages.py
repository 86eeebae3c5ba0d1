"""What damage ranks configs as real anomalies do: ways of drawing it side by side.

Eight configs of every method are trained as by `record.py`, and score the test images and, by each
way, two damaged copies by every mechanism of ten normal images that they have not seen. Spearman's
rho says how far the AUROC on the copies, pooled or of the mechanism that is found worst, orders
configs as the AUROC on the test images does, all with the papers' scorings: over all configs of a
set, and within each method. The test AUROC of the config that comes first is printed as well. The
ways:

* now: as `anomtune.datasets.splits.damage` draws it.
* weak: at a third of the strength.
* contrast: the change is scaled to 0.15 to 0.8 of the deviation of the image's own grey levels.
* placed: contrast, and where the image has detail rather than near its middle.
* small: placed, on a quarter of the area.
* spectrum: placed; textures and noise have the spectrum of the image itself.

Run ``python tests/benchmarks/search_quality/damages.py WORK [--only SET ...]``; what is trained
goes to the folder WORK, and a start goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from labels_free import rho
from record import CONFIGS, COPIES, SETS, SHARED, Config, as_tensor, open_config
from scipy import ndimage

from anomtune.datasets.splits import damage
from anomtune.datasets.splits.damage import MECHANISMS, Floats, Image, Mask, Place
from anomtune.search.metrics.delong import placements

EACH = 8
Drawn = Callable[[Place, float, np.random.Generator], Floats]


class Way(NamedTuple):
    """How damage is drawn.

    Attributes:
        strength: Factor of the strength.
        contrast: Range of the change, as parts of the deviation of the image's grey levels.
        placed: Whether it lies where there is detail.
        area: Factor of its area.
        spectrum: Whether textures have the image's own spectrum.
    """

    strength: float = 1.0
    contrast: tuple[float, float] | None = None
    placed: bool = False
    area: float = 1.0
    spectrum: bool = False


_CONTRAST = (0.15, 0.8)
WAYS = {
    "now": Way(),
    "weak": Way(strength=1 / 3),
    "contrast": Way(contrast=_CONTRAST),
    "placed": Way(contrast=_CONTRAST, placed=True),
    "small": Way(contrast=_CONTRAST, placed=True, area=1 / 4),
    "spectrum": Way(contrast=_CONTRAST, placed=True, spectrum=True),
}


def damaged(image: Image, mechanism: str, way: Way, rng: np.random.Generator) -> Image:
    """Returns a damaged copy of an image ``(H, W, 3)``."""
    if way == Way():
        return damage.damage(image, mechanism, rng).image
    source = image.astype(np.float64)
    grey = bool((image == image[..., :1]).all())
    detail = _detail(source)
    for attempt in range(8):
        region = _region(image.shape[:2], way, detail, rng)
        window = damage._window(region)
        place = Place(source, source[window], window, region[window])
        strength = way.strength * min(1.0, rng.uniform(0.25, 1.0) * (1 + attempt / 4))
        if way.spectrum and mechanism in ("texture", "roughen"):
            change = _own_texture(source, rng)[window]
        else:
            change = MECHANISMS[mechanism](place, strength, rng) - place.image
        if grey:
            change = change.mean(2, keepdims=True)
        if way.contrast:
            size = np.sqrt((change[place.region] ** 2).mean())
            wanted = source.mean(2).std() * np.exp(rng.uniform(*np.log(way.contrast)))
            change = change * wanted / max(size, 1.0)
        soft = ndimage.gaussian_filter(place.region.astype(np.float64), 0.7)[..., None]
        result = image.copy()
        result[window] = np.clip(np.rint(place.image + soft * change), 0, 255)
        if np.abs(result.astype(int) - image).max() >= 4:
            break
    return result


def _detail(source: Floats) -> Floats:
    """Returns how likely damage lies at each place, ``(H, W)``: where there is detail."""
    grey = source.mean(2)
    side = min(grey.shape) / 16
    spread = ndimage.gaussian_filter(grey**2, side) - ndimage.gaussian_filter(grey, side) ** 2
    spread = np.sqrt(np.maximum(spread, 0))
    return spread + 0.1 * spread.mean() + 1e-9


def _region(shape: tuple[int, int], way: Way, detail: Floats, rng: np.random.Generator) -> Mask:
    region = damage._region(*shape, rng)
    if way.area < 1:
        rows, columns = np.nonzero(region)
        centre = rows.mean(), columns.mean()
        zoom = np.sqrt(way.area)
        moved = [c - zoom * c for c in centre]
        grid = np.mgrid[: shape[0], : shape[1]]
        at = [np.clip((g - m) / zoom, 0, n - 1) for g, m, n in zip(grid, moved, shape, strict=True)]
        smaller = ndimage.map_coordinates(region.astype(float), at, order=1) > 0.5
        region = smaller if smaller.any() else region
    if way.placed:
        rows, columns = np.nonzero(region)
        inner = detail[shape[0] // 12 : -(shape[0] // 12), shape[1] // 12 : -(shape[1] // 12)]
        chosen = rng.choice(inner.size, p=(inner / inner.sum()).ravel())
        row, column = np.unravel_index(chosen, inner.shape)
        rows = rows + row + shape[0] // 12 - round(rows.mean())
        columns = columns + column + shape[1] // 12 - round(columns.mean())
        kept = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        region = np.zeros(shape, np.bool_)
        region[rows[kept], columns[kept]] = True
    return region


def _own_texture(source: Floats, rng: np.random.Generator) -> Floats:
    """Returns noise ``(H, W, 1)`` of the spectrum of an image."""
    grey = source.mean(2)
    spectrum = np.abs(np.fft.rfft2(grey - grey.mean()))
    phases = np.angle(np.fft.rfft2(rng.standard_normal(grey.shape)))
    field = np.fft.irfft2(spectrum * np.exp(1j * phases), grey.shape)
    return field[..., None]


def train(task: tuple[Config, Path]) -> str:
    """Trains a config and writes what it scores."""
    import torch

    config, path = task
    torch.set_num_threads(1)
    opened = open_config(config)
    detector, held = opened.detector, opened.held
    detector.fit(opened.seen, detector.hyperparameters.training_iterations(len(opened.seen)))

    def scored(images: Any) -> npt.NDArray[np.float32]:
        return detector.score(images).numpy()

    arrays = {"labels": opened.labels, "test": scored(opened.test)}
    arrays["held"] = scored(as_tensor(held))
    for name, way in WAYS.items():
        copies = [
            damaged(image, mechanism, way, np.random.default_rng([number, copy, kind]))
            for kind, mechanism in enumerate(MECHANISMS)
            for number, image in enumerate(held)
            for copy in range(COPIES)
        ]
        arrays[name] = scored(as_tensor(np.stack(copies))).reshape(len(MECHANISMS), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("wb") as file:
        np.savez(file, **arrays)
    path.with_suffix(".tmp").rename(path)
    return f"{config}"


def _auroc(normal: Any, anomalous: Any) -> float:
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(placements(labels, np.concatenate([normal, anomalous])[None].astype(float))[2][0])


def report(work: Path, sets: list[str]) -> None:
    """Prints rho by way and set."""
    rows: dict[tuple[str, str, str], list[float]] = {}
    for name in sets:
        found = {path.stem: np.load(path) for path in sorted((work / name).glob("*.npz"))}
        methods = np.array([stem.rpartition("-")[0] for stem in found])
        true = np.array([_auroc(*_by_label(a["test"], a["labels"])) for a in found.values()])
        for way in WAYS:
            kinds = np.array(
                [[_auroc(a["held"], copies) for copies in a[way]] for a in found.values()]
            )
            for label, figures in (("pooled", kinds.mean(1)), ("lowest", kinds.min(1))):
                within = [
                    rho(figures[methods == method], true[methods == method])
                    for method in np.unique(methods)
                ]
                rows.setdefault((way, label, "all"), []).append(rho(figures, true))
                rows.setdefault((way, label, "within"), []).append(float(np.mean(within)))
                rows.setdefault((way, label, "AUROC of the first"), []).append(
                    float(true[figures.argmax()])
                )
    print(f"| damage | figure | of | {' | '.join(sets)} | mean |\n|{'---|' * (len(sets) + 4)}")
    for labels, values in rows.items():
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(f"| {' | '.join(labels)} | {cells} | {np.mean(values):.2f} |")


def _by_label(scores: Any, labels: Any) -> tuple[Any, Any]:
    return scores[labels == 0], scores[labels == 1]


def wanted(sets: list[str]) -> Iterator[Config]:
    """Yields the configs, those of every study that come first first."""
    for number in range(EACH):
        for images in sets:
            for method in CONFIGS:
                yield Config(images, method, number)


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", choices=SETS, nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    if (SHARED / "weights").is_dir():
        os.environ.setdefault("TORCH_HOME", str((SHARED / "weights").resolve()))
    tasks = [(config, config.path(arguments.work)) for config in wanted(arguments.only)]
    with get_context("spawn").Pool(2) as workers:
        missing = [task for task in tasks if not task[1].exists()]
        for line in workers.imap_unordered(train, missing):
            print(line, flush=True)
    report(arguments.work, arguments.only)


if __name__ == "__main__":
    main()
