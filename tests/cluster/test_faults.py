"""A short campaign of random faults; `make faults` runs a longer one, `faults.py` any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_a_few_faults_leave_no_trace() -> None:
    script = Path(__file__).with_name("faults.py")
    command = [sys.executable, str(script), "--cases", "4", "--seed", "suite"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-2000:]}"
    assert done.stdout.rstrip().endswith(" 0 violations")
