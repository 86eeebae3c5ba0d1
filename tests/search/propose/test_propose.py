"""`anomtune init`: what it sees and proposes; its file runs, or it says what is missing."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomtune.errors import DataError
from anomtune.search.config import Sweep, sweep_of
from anomtune.search.preparation import prepare
from anomtune.search.propose.choose import half_width
from anomtune.search.propose.file import propose
from anomtune.search.store.storage import Storage
from tests.conftest import SHARED, draw_category


@pytest.fixture(autouse=True)
def _weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomtune.search.propose.choose.weights_at_hand", lambda name: True)


def draw(path: Path, number: int, size: tuple[int, int] = (40, 32), *, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    (image.convert("L") if grey else image).save(path)


def line(root: Path, good: int, bad: int, size: tuple[int, int] = (40, 32)) -> Path:
    for i in range(good):
        draw(root / f"good/{i:03}.png", i, size)
    for i in range(bad):
        draw(root / f"scratch/{i:03}.png", 1000 + i, size)
    return root


def runs(place: Path, tmp_path: Path) -> Sweep:
    """Returns the proposed sweep, made ready: all that a sweep does before its first trial."""
    sweep = sweep_of(propose(str(place)).text, "proposal")
    methods = {
        name: method.model_copy(update={"fixed": {**method.fixed, "weights": "random"}})
        for name, method in sweep.methods.items()
    }
    sweep = sweep.model_copy(update={"methods": methods})
    return prepare(sweep, Storage(tmp_path / "sweep"), lambda event: None).config


def test_the_width_of_an_interval() -> None:
    # The formula by hand: 2.071 / 1600 is the variance of 40 and 40 images.
    assert half_width(40, 40) == pytest.approx(0.0705, abs=5e-4)
    assert half_width(1000, 40) == pytest.approx(0.0638, abs=5e-4)
    assert half_width(50, 50, 0.9) / 1.96 == pytest.approx(math.sqrt(0.001034), abs=3e-4)
    assert half_width(400, 400) < half_width(40, 40) / 3


def test_a_divided_folder(tmp_path: Path) -> None:
    place = draw_category(tmp_path / "plate", train=12, good=12, bad=12)
    text = propose(str(place)).text
    assert "# Layout: MVTec's layout, one category." in text
    assert "# plate: colour, 32x32 pixels (16 looked at)" in text
    assert "#   12 images train, 12 normal and 12 anomalous judge (spot 12; 12 masks)" in text
    assert "expect of 6 normal and 6 anomalous held-out images: AUROC 0.9 +-0.19" in text
    config = runs(place, tmp_path)
    assert (config.name, config.image_size, config.validation.protocol) == ("plate", 32, "labelled")
    assert config.confirm.top > 0


def test_an_undivided_folder(tmp_path: Path) -> None:
    config = runs(line(tmp_path / "line 3", 20, 12), tmp_path)
    assert config.name == "line-3"
    assert config.dataset.division is not None
    counts = config.dataset.division.counts["line 3"]
    assert (counts.train, counts.normal, counts.anomalous) == (12, 8, 12)
    text = propose(str(tmp_path / "line 3")).text
    assert "divided by content hash: 60% of the normal images train, seed 0" in text
    assert "12 images train, 8 normal and 12 anomalous judge (scratch 12)" in text


def test_a_table(tmp_path: Path) -> None:
    line(tmp_path, 20, 12)
    with (tmp_path / "parts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "label", "category"))
        for path in sorted(tmp_path.rglob("*.png")):
            for name in ("bolt", "nut"):
                table.writerow((path.relative_to(tmp_path), path.parent.name, name))
    config = runs(tmp_path / "parts.csv", tmp_path)
    assert (config.dataset.name, config.dataset.categories) == ("table", ("bolt", "nut"))


def test_few_anomalous_images_confirm_and_do_not_choose(tmp_path: Path) -> None:
    config = runs(line(tmp_path / "line", 20, 4), tmp_path)
    assert config.validation.protocol == "synthetic"
    assert config.confirm.top > 0


def test_small_defects_make_a_larger_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = draw_category(tmp_path / "plate", size=400)  # of 6 x 6 pixels: 1.5 % of the side
    text = propose(str(place)).text
    assert "image_size: 256" in text
    assert "small defects are 1.5% of the side: 3.8 pixels here" in text


class TestOdd:
    def test_no_anomalous_image(self, tmp_path: Path) -> None:
        config = runs(line(tmp_path / "line", 12, 0), tmp_path)
        assert (config.validation.protocol, config.confirm.top) == ("synthetic", 0)
        text = propose(str(tmp_path / "line")).text
        assert "no anomalous image, so nothing tells how well detectors do" in text

    def test_three_images(self, tmp_path: Path) -> None:
        config = runs(line(tmp_path / "line", 3, 0), tmp_path)
        assert config.validation.protocol == "synthetic"
        assert "3 images are few to learn from" in propose(str(tmp_path / "line")).text
        with pytest.raises(DataError) as error:
            propose(str(line(tmp_path / "other", 2, 1)))
        assert str(error.value).startswith("other: 2 normal images, of which 1 would train; at")
        assert "\n" not in str(error.value)

    def test_mixed_sizes(self, tmp_path: Path) -> None:
        place = line(tmp_path / "line", 20, 12)
        for i in range(10):
            draw(place / f"good/{i:03}.png", i, (64, 200), grey=True)
        text = propose(str(place)).text
        assert "# line: colour, 40x32 to 64x200 pixels" in text
        assert "images of several shapes; each is squashed to a square" in text
        runs(place, tmp_path)

    def test_nested(self, tmp_path: Path) -> None:
        line(tmp_path / "a/b/line", 20, 12)
        with pytest.raises(DataError, match=r"set dataset\.root to") as error:
            propose(str(tmp_path / "a"))
        assert "\n" not in str(error.value)
        for i in range(20):
            draw(tmp_path / f"deep/good/2026/{i % 3}/{i}.png", i)
            draw(tmp_path / f"deep/scratch/2026/{i}.png", 100 + i)
        assert runs(tmp_path / "deep", tmp_path).image_size == 32

    def test_huge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Of time that is over after the first image, as after one of hundreds of megapixels.
        monkeypatch.setattr("anomtune.search.propose.look._SECONDS", 0.0)
        place = line(tmp_path / "line", 4, 1, (1300, 1000))
        text = propose(str(place)).text
        assert "# line: colour, 1300x1000 pixels (1 looked at)" in text
        assert int(text.partition("image_size: ")[2].split()[0]) in {128, 256}

    def test_two_products_in_one_folder(self, tmp_path: Path) -> None:
        for i in range(20):
            draw(tmp_path / f"line/good/{('bolt', 'nut')[i % 2]}_{i}.png", i)
            draw(tmp_path / f"line/scratch/{i}.png", 100 + i)
        text = propose(str(tmp_path / "line")).text
        assert "names begin with bolt (10), nut (10); if these are different products" in text
        runs(tmp_path / "line", tmp_path)
        line(tmp_path / "both/bolt", 20, 12)
        line(tmp_path / "both/nut", 20, 12)
        assert runs(tmp_path / "both", tmp_path / "x").dataset.categories == ("bolt", "nut")

    def test_a_category_that_cannot_be_used_is_left_out(self, tmp_path: Path) -> None:
        line(tmp_path / "both/bolt", 20, 12)
        line(tmp_path / "both/nut", 1, 12)
        proposal = propose(str(tmp_path / "both"))
        assert sweep_of(proposal.text, "proposal").dataset.categories == ("bolt",)
        assert proposal.notes[0].startswith("nut is left out: 1 normal images, of which 1 would")

    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda p: None, "no such file or folder"),
            (lambda p: p.mkdir(), "no image lies anywhere below"),
            (lambda p: draw(p / "1.png", 1), "nothing says which images are normal: put those"),
            (lambda p: p.write_bytes(b""), "neither a folder nor a table"),
        ],
    )
    def test_what_is_missing_is_one_line(self, tmp_path: Path, make, told: str) -> None:
        make(tmp_path / "odd")
        with pytest.raises(DataError) as error:
            propose(str(tmp_path / "odd"))
        assert told in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("battery_weld", "MVTec's layout, one category"),
        ("MNIST", "the published dataset mnist, 10 categories"),
        ("pacs_96px", "the published dataset pacs, 7 categories"),
    ],
)
def test_real_sets_are_recognised(shared_data: Path, name: str, layout: str) -> None:
    text = propose(str(SHARED / "data" / name)).text
    assert f"# Layout: {layout}" in text
    assert sweep_of(text, "proposal").dataset.root == str(SHARED / "data" / name)


def test_the_command_writes_a_file_once(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line(tmp_path / "line", 20, 12)
    code, out, err = run("init", "line", "--hours", "0.5")
    assert code == 0
    assert out.startswith(
        f"# A sweep of {tmp_path}/line, as `anomtune init` proposes it.\n# Layout"
    )
    assert err.strip() == "line.yaml written; run it: anomtune sweep line.yaml"
    written = (tmp_path / "line.yaml").read_text()
    assert written == out
    assert sweep_of(written, "x").budget.hours == 0.5
    code, _, err = run("init", "line")
    assert code == 2
    assert "line.yaml: is there already; remove it, or choose another file with --out" in err
    code, _, _ = run("init", "line", "--out", tmp_path / "other.yaml")
    assert code == 0


def test_the_audit_reads_a_sweep_file_and_says_how_images_were_divided(run, tmp_path: Path) -> None:
    line(tmp_path / "line", 20, 12)
    (tmp_path / "line.yaml").write_text(propose(str(tmp_path / "line")).text)
    for arguments in ((tmp_path / "line.yaml",), ("folder", tmp_path / "line")):
        code, out, _ = run("audit", *arguments)
        assert code == 0
        assert (
            "line: divided by content hash: 60% of the normal images train, seed 0: 12 images "
            "train, 8 normal and 12 anomalous judge"
        ) in " ".join(out.split())
