"""Every trained method takes epochs or iterations, whichever is set; the paper's is the default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from anomtune.models.hyperparameters import TrainedHyperparameters
from anomtune.models.recontrast import ReContrastHyperparameters
from anomtune.models.training.gradient_detector import GradientDetector
from anomtune.registry import METHODS

#: What each method's paper counts, and how much.
PAPERS = {
    "cutpaste": ("iterations", 65536),
    "deep_svdd": ("epochs", 500),
    "f_anogan": ("iterations", 150_000),
    "gmm_contrastive": ("iterations", 1000),
    "gnl": ("epochs", 20),
    "kdad": ("epochs", 601),
    "rd4ad": ("epochs", 200),
    "recontrast": ("iterations", 2000),
    "spr": ("epochs", 3000),
    "ssae": ("iterations", 20000),
}
OTHER = {"epochs": "iterations", "iterations": "epochs"}
NETWORK = {"backbone": "mobilenet_v2", "weights": "random"}
SMALL: dict[str, dict[str, Any]] = {
    "cutpaste": {"width": 8},
    "deep_svdd": {"resolution": 64},
    "f_anogan": {"width": 2},
    "gmm_contrastive": {**NETWORK, "dimensions": 6, "components": 3, "em_steps": 3},
    "gnl": NETWORK,
    "kdad": {"weights": "random"},
    "rd4ad": {**NETWORK, "loss": "global_hm"},
    "recontrast": NETWORK,
    "spr": {"width": 4, "resolution": 64},
    "ssae": {"width": 2, "resolution": 64},
}


def kind_of(method: str) -> Any:
    return METHODS.get(method).Hyperparameters


def images(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def test_these_are_all_that_are_trained() -> None:
    trained = {m for m in METHODS.declared() if issubclass(METHODS.get(m), GradientDetector)}
    assert trained == set(PAPERS)
    assert all(issubclass(kind_of(method), TrainedHyperparameters) for method in trained)


@pytest.mark.parametrize("method", sorted(PAPERS))
def test_the_papers_length_is_the_default_and_the_other_replaces_it(method: str) -> None:
    kind, (name, value) = kind_of(method), PAPERS[method]
    other = OTHER[name]
    hp = kind()
    assert (getattr(hp, name), getattr(hp, other)) == (value, None)
    for given in ({other: 3}, {other: 3, name: None}):
        hp = kind(**given)
        assert (getattr(hp, name), getattr(hp, other)) == (None, 3)
    assert kind(**{name: 3, other: None}) == kind(**{name: 3})
    assert kind(**kind(**{other: 3}).model_dump()) == kind(**{other: 3}), "a record is complete"
    assert not {"epochs", "iterations"} & kind.search_space().keys()


@pytest.mark.parametrize("method", sorted(PAPERS))
def test_exactly_one_is_set(method: str) -> None:
    kind, (name, _) = kind_of(method), PAPERS[method]
    with pytest.raises(ValidationError, match="set epochs or iterations, not both") as both:
        kind(epochs=3, iterations=4)
    assert [error["loc"] for error in both.value.errors()] == [("epochs",)]
    with pytest.raises(ValidationError, match="set epochs or iterations "):
        kind(**{name: None})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        kind(**{OTHER[name]: 0})


def test_a_later_part_replaces_the_length_of_an_earlier_one() -> None:
    merged = ReContrastHyperparameters.merged
    paper = ReContrastHyperparameters.paper_values("visa", "pcb1")
    assert paper["iterations"] == 3000
    assert merged(paper, {"epochs": 5}) == {"encoder_bn": "eval", "epochs": 5}
    assert merged({"epochs": 5}, {"iterations": 4}, {"lr": 1}) == {"iterations": 4, "lr": 1}
    assert merged({"epochs": 5}, {"epochs": None, "iterations": 4}) == {
        "epochs": None,
        "iterations": 4,
    }
    assert merged({"epochs": 5}, {"iterations": None})["epochs"] == 5, "null names none"
    both = merged({"iterations": 7}, {"epochs": 5, "iterations": 4})
    assert both == {"epochs": 5, "iterations": 4}, "which the method refuses"
    assert merged({"epochs": 5, "scoring": {"sigma": 1}}, {"scoring": {"reduce": "mean"}}) == {
        "epochs": 5,
        "scoring": {"sigma": 1, "reduce": "mean"},
    }


@pytest.mark.parametrize(
    ("method", "fields", "n_images", "steps"),
    [
        ("rd4ad", {}, 37, 3),
        ("rd4ad", {"drop_last": True}, 37, 2),
        ("rd4ad", {"drop_last": True}, 7, 1),
        ("recontrast", {"batch_size": 32}, 37, 2),
        ("gmm_contrastive", {}, 37, 5),
        ("spr", {}, 32, 2),
        # 5 % are held out: 38 of 40 are learnt from.
        ("ssae", {}, 40, 5),
        ("ssae", {"batch_size": 19}, 40, 2),
        ("ssae", {}, 1, 1),
    ],
)
def test_an_epoch_is_a_pass_over_the_images(
    method: str, fields: dict[str, Any], n_images: int, steps: int
) -> None:
    kind = kind_of(method)
    assert kind(epochs=7, **fields).training_iterations(n_images) == 7 * steps
    assert kind(iterations=7, **fields).training_iterations(n_images) == 7


def test_without_fine_tuning_there_is_nothing_to_repeat() -> None:
    kind = kind_of("gmm_contrastive")
    for length in ({"epochs": 5}, {"iterations": 5}):
        assert kind(fine_tune=False, **length).training_iterations(37) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(PAPERS))
def test_as_many_epochs_are_the_same_training_as_their_iterations(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedules too: nothing asks for the length in the unit that was not set."""
    detector_class, kind, given = METHODS.get(method), kind_of(method), images(7)
    seen: list[int] = []
    batch = detector_class.batch

    def noted(self: Any, pixels: Tensor, rows: Tensor) -> Tensor:
        seen.extend(rows.tolist())
        return batch(self, pixels, rows)

    monkeypatch.setattr(detector_class, "batch", noted)
    states = []
    epochs = kind(**SMALL[method], batch_size=4, epochs=4)
    total = epochs.training_iterations(len(given))
    for hp in (epochs, kind(**SMALL[method], batch_size=4, iterations=total)):
        detector = detector_class(hp, image_size=64, seed=0)
        detector.fit(given, total // 2)
        detector.fit(given, total - total // 2)
        states.append(detector.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    learnt = sorted(set(seen))
    assert len(learnt) == (6 if method == "ssae" else 7)
    assert all(seen.count(row) == 2 * 4 for row in learnt), "each image four times in each training"
