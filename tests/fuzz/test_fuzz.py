"""A short run of all readers; ``python -m tests.fuzz --inputs 100000`` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.slow


def test_damaged_files_are_refused_in_one_line_or_read():
    if sys.platform != "linux":
        pytest.skip("measures memory as Linux does")
    # The same inputs each time: whoever changes a reader sees what that has done. New ones are the
    # long run's, which draws its seed.
    words = ("--inputs", "1500", "--seconds", "40", "--seed", "18")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
