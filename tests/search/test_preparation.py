"""What a sweep makes ready: each category's own trial 0."""

from __future__ import annotations

from pathlib import Path

from anomtune.search.decide.pool import Pool
from anomtune.search.preparation import prepare
from anomtune.search.store.records import TrialRecord
from anomtune.search.store.storage import Storage
from tests.conftest import draw_category
from tests.search.conftest import parse_sweep, sweep_dict


def test_trial_0_of_each_category_is_the_papers_own(tmp_path: Path) -> None:
    for name, defect in (("tile", "crack"), ("bottle", "contamination")):
        folder = draw_category(tmp_path / "mvtec" / name, train=4, good=2, bad=4)
        for part in ("test", "ground_truth"):
            (folder / part / "spot").rename(folder / part / defect)
    sweep = parse_sweep(
        sweep_dict(
            dataset={"name": "mvtec", "root": str(tmp_path / "mvtec")},
            methods={"recontrast": {"fixed": {"weights": "random"}}},
            image_size=32,
        ),
        "test",
    )
    prepared = prepare(sweep, Storage(tmp_path / "sweep"), lambda event: None)
    hashes = {name: split.split_hash for name, split in prepared.splits.items()}
    saved: list[TrialRecord] = []
    pool = Pool(prepared.config, prepared.plans, hashes, {}, saved.append)
    first = [pool.ask(), pool.ask()]
    assert {
        record.category: (record.number, record.params["encoder_bn"], record.params["weights"])
        for record in first
        if record
    } == {"tile": (0, "eval", "random"), "bottle": (0, "train", "random")}
