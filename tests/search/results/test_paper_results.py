"""The table of published values: complete where papers are, and true to their averages."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources
from statistics import mean

import pytest

from anomtune.registry import DATASETS, METHODS
from anomtune.search.results.leaderboard import compile_leaderboard
from anomtune.search.results.paper_results import paper_auroc, published
from anomtune.search.store.directory import read_sweep
from tests.search.sample_sweep import write_sample_sweep

TABLE = resources.files("anomtune.search.results").joinpath("paper_results.csv").read_text("utf-8")
ROWS = list(csv.DictReader(TABLE.splitlines()))


def categories(dataset: str) -> set[str]:
    """Returns the categories of a complete copy of a dataset, without a copy."""
    kind = DATASETS.get(dataset)
    if dataset == "visa":
        from anomtune.datasets.visa import _COUNTS

        return set(_COUNTS)
    if dataset in {"aptos2019", "isic2018", "oct2017"}:
        return {dataset}
    return set(getattr(kind, "classes", None) or kind.counts)


def average(dataset: str, method: str, figure: str = "auroc") -> float:
    """Returns the mean over the categories in percent."""
    return 100 * mean(
        float(row[figure]) for row in ROWS if (row["dataset"], row["method"]) == (dataset, method)
    )


def test_every_row_is_of_a_category_and_a_method_that_exist():
    for row in ROWS:
        assert row["category"] in categories(row["dataset"]), row
        assert row["method"] in METHODS.names() or row["method"].startswith("anomalib."), row
        assert 0.5 < float(row["auroc"]) <= 1, row
        assert "Table" in row["source"], row


def test_no_row_is_there_twice():
    names = Counter((row["dataset"], row["category"], row["method"]) for row in ROWS)
    assert set(names.values()) == {1}


def test_a_method_has_all_categories_of_a_dataset_or_none():
    found: dict[tuple[str, str], set[str]] = {}
    for row in ROWS:
        found.setdefault((row["dataset"], row["method"]), set()).add(row["category"])
    for (dataset, method), names in found.items():
        assert names == categories(dataset), (dataset, method)


@pytest.mark.parametrize(
    ("dataset", "method", "published", "decimals"),
    [
        ("mvtec", "rd4ad", 98.5, 1),
        ("mvtec", "patchcore", 99.1, 1),
        ("mvtec", "recontrast", 99.5, 1),
        ("mvtec", "ssae", 99.6, 1),
        ("mvtec", "cutpaste", 95.2, 1),
        ("visa", "recontrast", 97.5, 1),
        ("mnist", "rd4ad", 98.89, 2),
        ("mnist", "gnl", 96.91, 2),
        ("pacs", "rd4ad", 81.49, 2),
        ("pacs", "gnl", 87.67, 2),
    ],
)
def test_means_are_the_published_averages(dataset, method, published, decimals):
    half = 0.5 * 10**-decimals
    assert average(dataset, method) == pytest.approx(published, abs=half + 1e-9)


@pytest.mark.parametrize(
    ("dataset", "method", "figure", "published_mean"),
    [
        ("mvtec", "recontrast", "pixel_auroc", 98.4),
        ("mvtec", "recontrast", "aupro_per_image", 95.2),
        ("mvtec", "ssae", "pixel_auroc", 99.1),
        ("mvtec", "cutpaste", "pixel_auroc", 96.0),
        ("mvtec", "patchcore", "pixel_auroc", 98.4),
        ("visa", "recontrast", "pixel_auroc", 98.2),
        ("visa", "recontrast", "aupro_per_image", 92.6),
    ],
)
def test_means_of_pixels_are_the_published_averages(dataset, method, figure, published_mean):
    assert average(dataset, method, figure) == pytest.approx(published_mean, abs=0.05 + 1e-9)


def test_what_is_published_has_a_source():
    found = published("mvtec", "screw", "recontrast")
    assert found.figures == {"auroc": 0.98, "pixel_auroc": 0.996, "aupro_per_image": 0.986}
    assert found.source == "Guo et al. (NeurIPS 2023) Tables 1 and A1"
    assert published("mvtec", "screw", "rd4ad").figures.keys() == {"auroc"}
    assert published("mvtec", "screw", "spr") is None


def test_known_and_unknown_values():
    assert paper_auroc("mvtec", "cable", "recontrast") == 0.998
    assert paper_auroc("aptos2019", "aptos2019", "padim") == 0.7717
    assert paper_auroc("mnist", "3", "gnl") == 0.9592
    assert paper_auroc("folder", "cable", "recontrast") is None
    assert paper_auroc("mvtec", "cable", "spr") is None


def test_the_leaderboard_has_them(tmp_path):
    dataset = {"name": "mvtec", "root": "/data", "categories": ["bottle", "cable"]}
    settings = {"methods": ["rd4ad", "padim"], "trials": 2, "confirm": 0}
    write_sample_sweep(tmp_path, categories=["bottle", "cable"], dataset=dataset, **settings)
    board = compile_leaderboard(*read_sweep(tmp_path)).to_pylist()
    assert {(row["category"], row["method"]): row["paper_auroc"] for row in board} == {
        ("bottle", "rd4ad"): 1.0,
        ("cable", "rd4ad"): 0.95,
        ("bottle", "padim"): None,
        ("cable", "padim"): None,
    }
