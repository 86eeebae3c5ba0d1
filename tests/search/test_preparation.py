"""What a sweep makes ready: each category's own trial 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomtune.errors import DataError, SweepError
from anomtune.search.config import Sweep, check_extends
from anomtune.search.decide.pool import Pool
from anomtune.search.preparation import prepare, resolve
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


def undivided(tmp_path: Path, **dataset: object) -> Sweep:
    """A sweep of a folder whose images nobody has divided."""
    folder = draw_category(tmp_path / "line", train=6, good=6, bad=6)
    for i, path in enumerate(sorted(folder.glob("*/good/*.png"))):
        (folder / "fine").mkdir(exist_ok=True)
        path.rename(folder / f"fine/{i}.png")
    section = {
        "name": "folder",
        "root": str(folder),
        "normal": "fine",
        "anomalous": {"spot": "test/spot"},
        **dataset,
    }
    methods = {"padim": {"fixed": {"backbone": "mobilenet_v2", "weights": "random"}}}
    return parse_sweep(sweep_dict(dataset=section, methods=methods, image_size=32), "test")


def test_the_resolved_sweep_says_how_images_were_divided(tmp_path: Path) -> None:
    sweep = undivided(tmp_path)
    told: list[object] = []
    config = prepare(sweep, Storage(tmp_path / "sweep"), told.append).config
    written = yaml.safe_load(config.to_yaml())["dataset"]
    assert written["division"] == {
        "train": 0.6,
        "seed": 0,
        "counts": {"line": {"train": 7, "normal": 5, "anomalous": 6}},
    }
    assert any("line: divided by content hash" in str(event) for event in told)
    # The same sweep goes on, with or without what the resolved file says; another division not.
    again = parse_sweep(yaml.safe_load(config.to_yaml()), "test")
    check_extends(config, prepare(again, Storage(tmp_path / "sweep"), told.append).config, "x")
    check_extends(config, resolve(sweep), "x")
    other = undivided(tmp_path / "other", division={"seed": 1})
    with pytest.raises(SweepError, match=r"dataset\.division\.seed = 0, now it is 1"):
        check_extends(
            config,
            resolve(
                other.model_copy(
                    update={
                        "dataset": config.dataset.model_copy(
                            update={"division": other.dataset.division}
                        )
                    }
                )
            ),
            "x",
        )


def test_images_that_divide_otherwise_than_is_said_are_refused(tmp_path: Path) -> None:
    counts = {"line": {"train": 8, "normal": 4, "anomalous": 6}}
    sweep = undivided(tmp_path, division={"counts": counts})
    with pytest.raises(SweepError, match=r"division\.counts\.line: 8 images train") as error:
        prepare(sweep, Storage(tmp_path / "sweep"), lambda event: None)
    assert "but now 7 images train, 5 normal" in str(error.value)
    divided = sweep_dict(
        dataset={"name": "folder", "root": str(draw_category(tmp_path / "p")), "division": {}},
        methods={"padim": {"fixed": {"weights": "random"}}},
        image_size=32,
    )
    with pytest.raises(SweepError, match="all images are in train or test already; remove it"):
        prepare(parse_sweep(divided, "test"), Storage(tmp_path / "s"), lambda event: None)


def test_what_a_dataset_does_not_take_is_refused(tmp_path: Path) -> None:
    sweep = sweep_dict(dataset={"name": "synthetic", "normal": "x"}, methods={"padim": {}})
    with pytest.raises(DataError, match=r"dataset\.normal: not for the dataset 'synthetic', which"):
        resolve(parse_sweep(sweep, "test"))


def test_folders_by_name_get_a_root(tmp_path: Path) -> None:
    sweep = undivided(tmp_path)
    place = tmp_path / "line"
    named = {"name": "folder", "normal": str(place / "fine"), "anomalous": str(place / "test")}
    section = resolve(parse_sweep(sweep_dict(dataset=named, methods={"padim": {}}), "test")).dataset
    assert (section.root, section.normal, section.anomalous) == (str(place), "fine", "test")
    assert section.open().scan("line")[0] == resolve(sweep).dataset.open().scan("line")[0]
