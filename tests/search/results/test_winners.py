"""Whose detector ends in ``models/``: that of the config which won, or none."""

from __future__ import annotations

from anomtune.datasets.splits.validation import Validation
from anomtune.search.config import ConfirmConfig, dump_yaml
from anomtune.search.detector.saved import CONFIG, WEIGHTS, Measured, SavedConfig
from anomtune.search.results.winners import (
    kept_config,
    kept_seed,
    model_folder,
    publish_winner,
)
from anomtune.search.store.records import ConfirmRecord, StudyKey
from anomtune.search.store.storage import Storage
from tests.search.decide.test_confirm import confirm_run, trial


def saved_config(run: ConfirmRecord) -> SavedConfig:
    return SavedConfig(
        method=run.method,
        hyperparameters=run.params,
        image_size=32,
        seed=run.seed,
        dataset=run.dataset,
        category=run.category,
        score_rule="max",
        threshold=0.5,
        map_low=0.0,
        map_high=1.0,
        validation=Validation(),
        split_hash=run.split_hash,
        measured=Measured(
            n_normal=3,
            n_anomalous=3,
            auroc=0.9,
            interval=(0.5, 1.0),
            n_flagged=1,
            f1=0.8,
            accuracy=0.8,
        ),
        code_version="1",
        versions={},
    )


class TestWinners:
    """Whose detector ends in ``models/``."""

    CONFIG = ConfirmConfig(top=2, seeds=(1, 2))
    RECORDS = (trial(0, 0.5), trial(1, 0.9), trial(2, 0.8))

    def runs(self, **values: float) -> list[ConfirmRecord]:
        return [
            confirm_run(int(name[1:]), seed, value)
            for name, value in values.items()
            for seed in (1, 2)
        ]

    def leave_detectors(self, storage: Storage, runs: list[ConfirmRecord]) -> None:
        for run in runs:
            if run.seed == kept_seed(self.CONFIG):
                storage.write(f"{run.path}/{WEIGHTS}", str(run.number).encode())
                content = dump_yaml(saved_config(run).model_dump(mode="json")).encode()
                storage.write(f"{run.path}/{CONFIG}", content)

    def publish(self, storage: Storage, runs: list[ConfirmRecord]) -> bytes | None:
        key = StudyKey("a", "toy")
        publish_winner(storage, key, self.RECORDS, runs, self.CONFIG)
        assert storage.list("confirm", "") == [], "weights are what fills a disk"
        return storage.read(f"{model_folder(key)}/weights.safetensors")

    def test_the_winner_is_kept_and_the_others_go(self, tmp_path) -> None:
        storage = Storage(tmp_path)
        runs = self.runs(_0=0.5, _1=0.7, _2=0.9)
        self.leave_detectors(storage, runs)
        assert self.publish(storage, runs) == b"2"
        assert self.publish(storage, runs) == b"2", "again changes nothing"

    def test_its_config_is_found_before_and_after(self, tmp_path) -> None:
        storage = Storage(tmp_path)
        runs = self.runs(_0=0.5, _1=0.7)
        self.leave_detectors(storage, runs)
        first = [run for run in runs if run.seed == kept_seed(self.CONFIG)]
        assert [kept_config(storage, run).hyperparameters for run in first] == [
            run.params for run in first
        ]
        self.publish(storage, runs)
        found = {run.number: kept_config(storage, run) for run in first}
        assert found[0] is None, "it went"
        assert found[1].threshold == 0.5

    def test_a_new_winner_takes_the_place(self, tmp_path) -> None:
        storage = Storage(tmp_path)
        first = self.runs(_0=0.5, _1=0.7)
        self.leave_detectors(storage, first)
        assert self.publish(storage, first) == b"1"
        second = self.runs(_2=0.9)
        self.leave_detectors(storage, second)
        assert self.publish(storage, [*first, *second]) == b"2"

    def test_no_detector_is_better_than_anothers(self, tmp_path) -> None:
        storage = Storage(tmp_path)
        runs = self.runs(_0=0.5, _1=0.7, _2=0.6)
        self.leave_detectors(storage, runs)
        assert self.publish(storage, runs) == b"1"
        changed = self.runs(_0=0.5, _1=0.7, _2=0.9)
        assert self.publish(storage, changed) is None
