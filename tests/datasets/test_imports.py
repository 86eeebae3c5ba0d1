"""The datasets stand alone: arrays leave them, and nothing of a search or a method enters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anomtune.datasets

HEAVY = "{'ray', 'torch', 'optuna', 'torchvision'}"


def test_package_knows_nothing_of_ray_torch_or_optuna() -> None:
    (folder,) = map(Path, anomtune.datasets.__path__)
    modules = [
        ".".join(("anomtune.datasets", *path.relative_to(folder).with_suffix("").parts))
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert {"anomtune.datasets.folder", "anomtune.datasets.splits.split"} <= set(modules)
    code = (
        f"import sys, {', '.join(modules)};"
        f"print({HEAVY} & set(sys.modules),"
        "[m for m in sys.modules if m.startswith(('anomtune.search', 'anomtune.models'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set() []"
