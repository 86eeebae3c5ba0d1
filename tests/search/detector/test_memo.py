"""What trials share: computed once, and nothing of it changes what a trial finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomtune.models import patchcore
from anomtune.search.detector.memo import NodeMemo
from tests.conftest import draw_category
from tests.search.detector.test_features import opened, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_category(root / "plate", train=10)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ANOMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """Notes each selection of a bank, and each comparison with it."""
    done: list[str] = []
    for name in ("nearest_changes", "CoresetBuilder"):
        what = getattr(patchcore, name)
        monkeypatch.setattr(
            patchcore, name, lambda *a, _w=what, _n=name, **k: done.append(_n) or _w(*a, **k)
        )
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"coreset_ratio": 0.02},
        {"coreset_ratio": 1.0},
        {"coreset": "approximate", "coreset_ratio": 0.2},
        {"max_bank": 9},
        {"crop": 32, "scoring": {"n_neighbours": 1, "squared": True}},
    ],
)
def test_a_trial_that_shares_finds_the_same(data, fields):
    plain, sharing = opened(data, "patchcore", **fields), opened(data, "patchcore", **fields)
    sharing.know_features(share=True)
    expected = trained(plain)
    for _ in range(3):  # first it is alone, then it computes, then it finds
        found = trained(sharing)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        sharing = opened(data, "patchcore", **fields)
        sharing.know_features(share=True)
    banks = (each.detector.network.bank.shape for each in (plain, sharing))
    trained(sharing)
    assert torch.equal(sharing.detector.network.bank, plain.detector.network.bank), banks


@pytest.mark.slow
def test_trials_with_smaller_banks_select_and_compare_nothing(data, work):
    for number, ratio in enumerate((0.1, 0.2, 0.25, 0.07)):
        trial = opened(data, "patchcore", coreset_ratio=ratio)
        trial.know_features(share=True)
        trained(trial)
        expected = ({"CoresetBuilder"}, {"nearest_changes", "CoresetBuilder"}, set(), set())
        assert set(work) == expected[number]
        work.clear()
    other = opened(data, "patchcore", coreset_ratio=0.2, neighbourhood=1)
    other.know_features(share=True)
    trained(other)
    assert set(work) == {"CoresetBuilder"}


@pytest.mark.slow
def test_who_shares_nothing_leaves_nothing(data, cache):
    alone = opened(data, "patchcore")
    alone.know_features()
    trained(alone)
    assert alone.detector.spared == 0
    assert not (cache / "shared").exists()


@pytest.mark.slow
def test_a_bank_that_was_loaded_is_no_beginning_of_another(data):
    trial, other = (opened(data, "patchcore", coreset_ratio=r) for r in (0.2, 0.1))
    trial.know_features(share=True)
    for _ in range(2):
        trial.detector.iteration = 0
        trained(trial)
    assert trial.detector.spared > 0
    expected = trained(other)
    trial.detector.load_state_dict(other.detector.state_dict())
    found = trial.detector.score(trial.validation)
    assert np.allclose(found.numpy(), expected[0], rtol=1e-4)


@pytest.mark.slow
def test_the_time_of_an_image_has_what_was_spared(data, monkeypatch):
    for _ in range(2):
        trial = opened(data, "patchcore")
        trial.know_features(share=True)
        trained(trial)
    assert 0 < trial.detector.spared < 1
    before = trial.image_ms(0.0)
    trial.detector.spared += 0.5
    assert trial.image_ms(0.0) == pytest.approx(before + 500)


def test_names_and_features_keep_apart_what_is_kept():
    def of(value: float) -> Any:
        return lambda: {"x": torch.tensor([value])}

    one, other = NodeMemo(["a"]), NodeMemo(["b"])
    assert one(("n", 1), of(1.0))["x"] == 1
    assert one(("n", 1), of(2.0))["x"] == 1
    assert one(("n", 2), of(3.0))["x"] == 3
    assert other(("n", 1), of(4.0))["x"] == 4
    assert [one.wanted(("n", 3)), one.wanted(("n", 3)), other.wanted(("n", 3))] == [
        False,
        True,
        False,
    ]
