"""Several directories read as one: a sweep whose categories were divided among several drivers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anomtune.errors import StorageError, SweepError
from anomtune.search.report import write_report
from anomtune.search.results.result import open_sweep
from anomtune.search.store.directory import read_config, write_config
from anomtune.search.store.storage import Storage
from anomtune.search.sweep import run as run_sweep
from tests.conftest import draw_category
from tests.search.conftest import parse_sweep, sweep_dict
from tests.search.sample_sweep import write_sample_sweep

CATEGORIES = ("bottle", "screw", "zipper")
#: What is measured anew by each run.
MEASURED = {"created_at", "train_seconds", "image_ms", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One sweep of all categories."""
    root = tmp_path_factory.mktemp("several") / "whole"
    write_sample_sweep(
        root, categories=CATEGORIES, methods=("patchcore", "padim"), trials=6, domains=("fog",)
    )
    return root


def divide(whole: Path, **changes) -> list[Path]:
    """Writes what several drivers would have left: a directory per category."""
    config = read_config(Storage(whole))
    parts = []
    for category in config.dataset.categories:
        part = whole.parent / f"{category}-{len(changes)}"
        shutil.rmtree(part, ignore_errors=True)
        for folder in ("trials", "confirm", "scorings"):
            if (whole / folder / category).exists():
                shutil.copytree(whole / folder / category, part / folder / category)
        for name in ("held_out.json", "searched.json"):
            if (whole / name).exists():
                shutil.copy(whole / name, part / name)
        dataset = config.dataset.model_copy(update={"categories": (category,)})
        write_config(Storage(part), config.model_copy(update={"dataset": dataset}))
        parts.append(part)
    return parts


def change(part: Path, **values) -> Path:
    config = read_config(Storage(part))
    write_config(Storage(part), config.model_copy(update=values))
    return part


@pytest.fixture
def parts(whole) -> list[Path]:
    return divide(whole)


def test_three_directories_are_one_sweep(whole, parts):
    one, three = open_sweep(whole), open_sweep(*parts)
    assert three.config == one.config
    assert three.categories == CATEGORIES
    assert three.leaderboard.equals(one.leaderboard, check_metadata=True)
    assert three.trials.equals(one.trials, check_metadata=True)
    assert three.progress == one.progress
    assert three.finished
    assert list(three) == list(one)
    assert len(three) == len(one) == 6
    for category in CATEGORIES:
        assert three[category, "padim"] == one[category, "padim"]
        best = three.best(category)
        assert (best.spec, best.row) == (one.best(category).spec, one.best(category).row)
        assert Path(best.folder) == parts[CATEGORIES.index(category)] / "models" / category / (
            best.method
        )
    with pytest.raises(SweepError, match="category 'zip': not in this sweep"):
        three.best("zip")


def test_they_come_in_the_order_in_which_they_are_given(parts):
    assert open_sweep(*reversed(parts)).categories == CATEGORIES[::-1]


def test_a_metric_that_one_directory_alone_has_is_a_column_of_all(parts, tmp_path):
    record = next((parts[1] / "confirm").rglob("*.json"))
    text = record.read_text()
    assert '"aupro":' in text
    record.write_text(text.replace('"aupro":', '"of_a_plugin": 0.25,\n"aupro":', 1))
    board = open_sweep(*parts).leaderboard
    assert "test_of_a_plugin_mean" in board.schema.names
    assert board.num_rows == 6
    write_report(*parts, out=tmp_path / "report.html")


def test_the_report_of_three_is_that_of_one(whole, parts, tmp_path):
    def page(place: Path) -> list[str]:
        lines = place.read_text().splitlines()
        return [line for line in lines if "UTC" not in line]  # when it was written

    write_report(whole)
    written = write_report(*parts, out=tmp_path / "below" / "line-3.html")
    assert Path(written.location) == tmp_path / "below" / "line-3.html"
    assert written.size == Path(written.location).stat().st_size
    assert page(Path(written.location)) == page(whole / "report.html")
    assert not any((part / "report.html").exists() for part in parts)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(*parts, out=tmp_path / "file" / "line-3.html")


def test_what_goes_with_no_other_is_refused_and_named(parts):
    def refusal(*directories: Path) -> str:
        with pytest.raises(SweepError) as refused:
            open_sweep(*directories)
        message = str(refused.value)
        assert "\n" not in message
        return message

    first, second, third = parts
    assert f"{second}: given twice" in refusal(first, second, second)
    assert "no sweep.yaml there" in refusal(first, second / "trials")
    for values, expected in (
        ({"image_size": 64}, "has image_size = 64, and {} has 256"),
        ({"seed": 4}, "has seed = 4, and {} has 0"),
        ({"rungs": 2}, "has rungs = 2, and {} has "),
        ({"trials": 7}, "has trials = 7, and {} has 6"),
        ({"scoring": "paper"}, 'has scoring = "paper", and {} has "search"'),
        ({"methods": {"padim": {}}}, "has methods.patchcore = null, and {} has {{"),
        (
            {"validation": {"protocol": "labelled", "fraction": 0.3}},
            "has validation.fraction = 0.3, and {} has 0.5",
        ),
    ):
        before = (third / "sweep.yaml").read_bytes()
        other = parse_sweep(read_config(Storage(third)).model_dump(mode="json") | values, "test")
        write_config(Storage(third), other)
        message = refusal(first, second, third)
        assert message.startswith(f"{third}: {expected.format(first)}"), message
        (third / "sweep.yaml").write_bytes(before)
    both = read_config(Storage(third)).dataset.model_copy(
        update={"categories": ("zipper", "screw")}
    )
    assert f"{third}: has the category screw, and so has {second}" in refusal(
        first, second, change(third, dataset=both)
    )


def test_what_says_nothing_of_the_results_may_differ(parts):
    change(parts[1], name="others", concurrency=3, warm_start=("/sweeps/line-2",))
    config = open_sweep(*parts).config
    assert config.name.endswith(", others")
    assert config.warm_start == ("/sweeps/line-2",)


def test_as_commands(whole, parts, run, tmp_path):
    code, out, _ = run("leaderboard", whole, "--format", "csv")
    assert (code, out) == run("leaderboard", *parts, "--format", "csv")[:2]
    code, out, _ = run("leaderboard", *parts, "--category", "screw", "--format", "csv")
    assert code == 0
    assert out.count("screw") == 2
    code, _, err = run("report", *parts)
    assert code == 2
    assert err.count("\n") == 1
    assert "say where it is to be written, with --out FILE" in err
    code, out, _ = run("report", *parts, "--out", tmp_path / "all.html")
    assert code == 0
    assert (tmp_path / "all.html").exists()
    assert run("report", *parts, "--out", tmp_path)[0] == 2
    code, _, err = run("leaderboard", parts[0], parts[0])
    assert code == 2
    assert "given twice" in err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_three_drivers_find_what_one_does(tmp_path):
    """Real sweeps. Nothing beats the paper's config, so that no category learns from another."""
    names = ("cup", "plate", "ring")
    for seed, name in enumerate(names):
        draw_category(tmp_path / "data" / name, seed=seed)

    def sweep(directory: Path, *categories: str) -> Path:
        config = sweep_dict(tmp_path / "data", trials=3, rungs=1, scoring="paper", confirm=1)
        config["methods"] = {"toy": {"space": {"quality": {"low": 0.0, "high": 0.4}}}}
        config["dataset"]["categories"] = list(categories)
        run_sweep(parse_sweep(config, "test"), directory)
        return directory

    one = open_sweep(sweep(tmp_path / "one", *names)).leaderboard
    three = open_sweep(*(sweep(tmp_path / name, name) for name in names)).leaderboard
    kept = [name for name in one.schema.names if name not in MEASURED]
    assert three.select(kept).to_pylist() == one.select(kept).to_pylist()
    assert three.num_rows == 3
    assert three["completed"].to_pylist() == [3, 3, 3]
