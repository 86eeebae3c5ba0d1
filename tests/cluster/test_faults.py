"""A short campaign of random faults; `faults.py` runs a long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_a_few_random_faults_leave_no_trace() -> None:
    script = Path(__file__).with_name("faults.py")
    command = [sys.executable, str(script), "--cases", "2", "--seed", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith(" 0 violations")
