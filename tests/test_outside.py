"""What another package, a script or a notebook adds without an edit in this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import optuna
import pytest
from pydantic import Field
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import anomtune as at
from anomtune.registry import ALL
from anomtune.search.config import parse_sweep
from anomtune.search.store.directory import write_config
from anomtune.search.store.storage import Storage
from tests.conftest import PROJECT
from tests.search.conftest import Simulation, sweep_dict


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    yield
    for registry in ALL:
        registry._registered.clear()


def add_a_method() -> None:
    class LevelHyperparameters(at.Hyperparameters):
        level: float = Field(default=0.4, description="Grey level of a normal pixel. Source: ours.")

        def training_iterations(self, n_images: int) -> int:
            return 2

    @at.register_method("level")
    class Level(at.GradientDetector[LevelHyperparameters]):
        def build(self) -> nn.Module:
            return nn.Conv2d(3, 1, 1)

        def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
            return self.network(images / 255).square().mean()

        def evidence(self, images: Tensor) -> at.Evidence:
            grey = images.float().mean(1) / 255
            return at.Evidence(((grey - self.hyperparameters.level).abs(),))


def add_a_dataset() -> None:
    @at.register_dataset("dots")
    class Dots(at.Dataset):
        def categories(self) -> tuple[str, ...]:
            return ("dot",)

        def scan(self, category: str) -> tuple[tuple[at.Sample, ...], tuple[at.Problem, ...]]:
            kinds = (("train", "good", 4), ("test", "good", 4), ("test", "dot", 6))
            return tuple(
                at.Sample(f"{part}/{kind}/{i}", part, kind, f"mask/{i}" if kind == "dot" else None)
                for part, kind, count in sorted(kinds)
                for i in range(count)
            ), ()

        def file_digest(self, category: str, key: str) -> str:
            return key

        def read_image(self, category: str, key: str) -> np.ndarray:
            image = np.full((32, 32, 3), 100, np.uint8)
            image += np.random.default_rng(list(key.encode())).integers(
                9, size=image.shape, dtype=np.uint8
            )
            if "dot" in key:
                image[self.read_mask(category, key)] = 255
            return image

        def read_mask(self, category: str, key: str) -> np.ndarray:
            return np.pad(np.ones((8, 8), bool), 12)


def add_a_sampler() -> None:
    @at.register_sampler("even")
    def even(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)


def add_a_pruner() -> None:
    @at.register_pruner("below_half")
    def below_half() -> optuna.pruners.BasePruner:
        return optuna.pruners.ThresholdPruner(lower=0.5)


def add_a_metric() -> None:
    @at.register_metric("average_precision", title="AP", meaning="Average precision of the images.")
    def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
        return float(average_precision_score(labels, scores))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_all_of_it_in_one_sweep(tmp_path, run) -> None:
    for add in (add_a_method, add_a_dataset, add_a_sampler, add_a_pruner, add_a_metric):
        add()
    sweep = at.Sweep(
        name="outside",
        dataset={"name": "dots"},
        methods={"level": {"space": {"level": {"low": 0.3, "high": 0.5}}}},
        sampler="even",
        pruner="below_half",
        image_size=32,
        trials=4,
        rungs=2,
        confirm={"top": 1, "seeds": [1]},
    )
    result = at.run(sweep, tmp_path)
    assert result.finished
    (row,) = result.leaderboard.to_pylist()
    assert (row["dataset"], row["category"], row["method"]) == ("dots", "dot", "level")
    assert row["val_auroc"] == 1.0
    assert row["test_average_precision_mean"] == 1.0
    field = result.leaderboard.schema.field("test_average_precision_mean")
    assert field.metadata[b"meaning"].startswith(b"Average precision of the images.")
    code, shown, _ = run("leaderboard", tmp_path)
    assert code == 0
    assert "AP" in shown
    assert result.best("dot").load("cpu").config.measured.auroc == 1.0


@pytest.mark.parametrize(("key", "word"), [("sampler", "evn"), ("pruner", "below_hlf")])
def test_a_name_that_nobody_has_registered(key: str, word: str, tmp_path) -> None:
    add_a_sampler()
    add_a_pruner()
    methods = {"padim": {"fixed": {"weights": "random"}}}
    sweep = at.Sweep(name="x", dataset={"name": "synthetic"}, methods=methods, **{key: word})
    told = f"^{key}: no {key} '{word}'; .*did you mean '(even|below_half)'"
    with pytest.raises(at.SweepError, match=told):
        at.run(sweep, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_of_what_is_not_known_here_can_be_read(tmp_path) -> None:
    """The script that registered it may be elsewhere: its results are not."""
    add_a_method()
    add_a_sampler()
    add_a_pruner()
    names = {"sampler": "even", "pruner": "below_half"}
    sweep = at.Sweep(
        name="x",
        dataset={"name": "dots", "categories": ["dot"]},
        methods={"level": {}},
        **names,
    )
    write_config(Storage(tmp_path), sweep)
    for registry in ALL:
        registry._registered.clear()
    result = at.open_sweep(tmp_path)
    assert result.config == sweep
    assert result.leaderboard.num_rows == 1
    assert not result.finished


SCRIPT = """
import sys
sys.path.append({place!r})  # as notebooks do
import anomtune as at
import their.detectors
at.register_method("theirs", their.detectors.Brightness)
sweep = at.Sweep(
    name="x", dataset=at.Folder({images!r}),
    methods={{"theirs": {{}}, "their.detectors:Brightness": {{}}}},
    image_size=32, trials=1, rungs=1, confirm=0, concurrency=1,
)
result = at.run(sweep, {out!r})
print([trial.state for study in result for trial in study.trials])
"""


@pytest.mark.ray
def test_a_module_that_only_the_drivers_path_has(tmp_path, toy_data) -> None:
    place = tmp_path / "their"
    shutil.copytree(PROJECT / "tests/example/lab", place / "their")
    script = SCRIPT.format(
        place=str(place), images=str(toy_data / "plate"), out=str(tmp_path / "s")
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.strip() == "['COMPLETE', 'COMPLETE']", done.stdout + done.stderr


def test_one_sweep_at_a_time(tmp_path) -> None:
    """Ray and its switches are a process's own."""
    refusals = []

    def other(event: object) -> None:
        if not refusals:
            with pytest.raises(at.SweepError, match="runs in this process already") as refusal:
                at.run(sweep, tmp_path / "other")
            refusals.append(refusal)
            raise InterruptedError

    methods = {"padim": {"fixed": {"weights": "random", "backbone": "mobilenet_v2"}}}
    sweep = at.Sweep(name="x", dataset={"name": "synthetic"}, methods=methods, image_size=32)
    with pytest.raises(InterruptedError):
        at.run(sweep, tmp_path / "one", on_event=other)
    assert refusals
    assert not (tmp_path / "other").exists()


def test_a_sampler_that_raises_when_it_is_asked() -> None:
    class Broken(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: object, trial: object) -> dict:
            raise ZeroDivisionError("by\nzero")

        def sample_relative(self, study: object, trial: object, space: object) -> dict:
            return {}

        def sample_independent(self, *arguments: object) -> object:
            return None

    at.register_sampler("broken", Broken)
    config = parse_sweep(sweep_dict(sampler="broken"), "test")
    with pytest.raises(at.SweepError, match=r"sampler 'broken' .*ZeroDivisionError: by zero"):
        Simulation().run(config)


def test_a_decorator_without_a_name() -> None:
    with pytest.raises(
        at.MethodError, match=r'give it a name: @anomtune.register_method\("name"\)'
    ):

        @at.register_method
        class Bare(at.Detector): ...
