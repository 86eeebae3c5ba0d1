"""The script for GPUs goes through on a CPU: when a GPU can be had, it must not fail on a typo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomtune.registry import METHODS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_it_goes_through_without_a_gpu() -> None:
    script = Path(__file__).with_name("run.sh")
    done = subprocess.run(
        ["bash", str(script), "--dry"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    ours = [
        name for name in METHODS.declared() if METHODS.get(name).__module__.startswith("anomtune.")
    ]
    assert len(ours) == 12
    for method in ours:
        assert f"| {method} |" in done.stdout
    assert "for 8 trials" in done.stdout
