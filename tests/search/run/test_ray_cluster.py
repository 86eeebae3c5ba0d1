"""What is said when a cluster lets nobody in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anomtune.errors import SweepError
from anomtune.search.run.ray_cluster import ray_cluster


@pytest.mark.parametrize(
    ("address", "where"), [("10.0.0.1:6379", "--address 10.0.0.1:6379"), (None, "Ray on this")]
)
def test_a_missing_token_is_one_line_with_its_remedy(monkeypatch, address, where):
    import ray
    from ray.exceptions import AuthenticationError

    def init(**_):
        raise AuthenticationError("Unauthenticated")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SweepError) as caught, ray_cluster(address):
        pass
    assert str(caught.value).startswith(where)
    assert "RAY_AUTH_TOKEN_PATH" in str(caught.value)


def test_ray_itself_says_it_so(tmp_path):
    """The installed Ray raises what the test above stands for, before it starts anything."""
    code = "import ray; ray.init(address='10.255.255.1:6379')"
    environment = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "AuthenticationError" in done.stderr
