"""The templates of docs/plugins.md, as a user would copy them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import anomtune as at
from anomtune.registry import DATASETS, METHODS
from tests.conftest import PROJECT
from tests.markdown import blocks

pytestmark = pytest.mark.slow

METHOD_TEXT, METHOD_CHECK, DATASET_TEXT, DATASET_CHECK = (
    block.text for block in blocks(PROJECT / "docs/plugins.md") if block.language == "python"
)


def module(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A template as a module of a package that workers can import."""
    assert len(text.splitlines()) < 60
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    found: ModuleType = __import__(name)
    return vars(found)


def test_the_method_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = module("template_method", METHOD_TEXT, tmp_path, monkeypatch)
    exec(METHOD_CHECK, dict(names))
    assert METHODS.get("template_method:PatchMean") is names["PatchMean"]


def test_the_dataset_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = module("template_dataset", DATASET_TEXT, tmp_path, monkeypatch)
    generator = np.random.default_rng(0)
    rows = ["image,part,defect,mask"]
    for kind, part, count in (("good", "train", 4), ("good", "test", 4), ("dent", "test", 4)):
        for number in range(count):
            key = f"{part}/{kind}/{number}.png"
            mask = f"masks/{number}.png" if kind == "dent" else ""
            rows.append(f"{key},{part},{kind},{mask}")
            for name, shape in ((key, (16, 16, 3)), (mask, (16, 16))):
                path = tmp_path / "root/shelf" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if name:
                    pixels = generator.integers(128, 256, shape, dtype=np.uint8)
                    Image.fromarray(pixels).save(path)
    (tmp_path / "root/shelf.csv").write_text("\n".join(rows))
    exec(DATASET_CHECK, names | {"root": tmp_path / "root", "at": at})
    assert DATASETS.get("template_dataset:Shelf") is names["Shelf"]
