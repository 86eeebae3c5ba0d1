"""Images that look nearly the same on two sides are named, and never left out."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from anomtune.datasets.folder import Folder
from anomtune.datasets.splits.audit import inspect
from anomtune.datasets.splits.near import perceptual_hash
from anomtune.datasets.splits.split import load_search_split
from anomtune.datasets.splits.validation import Validation


def draw(number: int) -> Image.Image:
    noise = np.random.default_rng(number).normal(size=(96, 128))
    smooth = ndimage.gaussian_filter(noise, 3)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 255
    return Image.fromarray(np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=2))


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def test_a_copy_looks_like_its_original_and_others_do_not() -> None:
    def distance(one: Image.Image, other: Image.Image) -> int:
        hashes = [perceptual_hash(np.asarray(image)) for image in (one, other)]
        assert hashes[0].shape == (4,)
        return int(np.bitwise_count(hashes[0] ^ hashes[1]).sum())

    for number in range(10):
        image = draw(number)
        assert distance(image, as_jpeg(image)) <= 10
        assert distance(image, image.resize((64, 48))) <= 10
        assert distance(image, draw(100 + number)) > 80


def write(root: Path) -> Path:
    part = root / "part"
    for where, first, count in (("train/good", 0, 6), ("test/good", 20, 4), ("test/dent", 40, 4)):
        for i in range(count):
            path = part / where / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(first + i).save(path)
    return part


def test_the_audit_names_them_and_drops_none(tmp_path: Path) -> None:
    part = write(tmp_path)
    assert inspect(Folder(part)).problems == ()
    before = load_search_split(Folder(part), "part", 16, Validation())
    as_jpeg(draw(0)).save(part / "test/good/0.png")
    (problem,) = inspect(Folder(part)).problems
    assert not problem.fatal
    assert "look nearly the same: train/good/0.png and test/good/0.png; if they" in str(problem)
    after = load_search_split(Folder(part), "part", 16, Validation())
    assert after.dropped == ()
    assert len(after.validation) == len(before.validation)
    assert len(after.train) == len(before.train)


def test_images_of_one_group_are_on_one_side_and_not_named(tmp_path: Path) -> None:
    write(tmp_path)
    root = tmp_path / "line"
    for name, source in (("good", "train/good"), ("good", "test/good"), ("dent", "test/dent")):
        for path in (tmp_path / "part" / source).iterdir():
            target = root / name / f"{source.replace('/', '-')}-{path.stem}_a.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            as_jpeg(Image.open(path)).save(target.with_name(target.name.replace("_a", "_b")))
    alone = inspect(Folder(root))
    assert alone.counts[0].division is not None
    assert any("look nearly the same" in str(p) for p in alone.problems)
    together = inspect(Folder(root, group="^(.+)_[ab]"))
    assert [str(p) for p in together.problems] == []
