"""What all tests share: a cache of their own, weights and data if they are there, tiny images."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).parent.parent
SHARED = PROJECT.parent / "shared"
PLUGIN = Path(__file__).parent / "plugin"
FORKS = Path(__file__).parent / "forks"

# The toy method is found as any other package's would be, here and in every Ray worker.
sys.path.append(str(PLUGIN))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(PLUGIN), str(FORKS), os.environ.get("PYTHONPATH", "")))
)
# Else what waits for workers takes the time that they need.
os.environ |= {"RAY_worker_niceness": "0"}
# MLflow would tell its makers of every test.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
if (SHARED / "weights").is_dir():
    os.environ.setdefault("TORCH_HOME", str(SHARED / "weights"))

# How long an example takes says nothing on a machine that runs other tests meanwhile.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves alone, in the run of Ray's tests, files that have none: importing them takes time."""
    if config.option.markexpr != "ray" or collection_path.suffix != ".py":
        return None
    return "mark.ray" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts what Ray's processes are forked off, once for all processes of these tests."""
    if sys.platform != "linux" or not any(item.get_closest_marker("ray") for item in session.items):
        return
    in_worker = "PYTEST_XDIST_WORKER" in os.environ
    owner = os.getppid() if in_worker else os.getpid()
    place = Path(tempfile.gettempdir()) / f"anomtune-tests-{owner}"
    place.mkdir(mode=0o700, exist_ok=True)
    os.environ["ANOMTUNE_TEST_SERVER"] = str(place / "socket")
    subprocess.Popen(
        [sys.executable, FORKS / "server.py", place / "socket", str(owner)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(place / "log").open("a"),
        start_new_session=True,
    )


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    os.environ["ANOMTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets; tests that need it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real datasets in ../shared/data")
    return SHARED / "data"


def draw_category(
    folder: Path, *, train: int = 6, good: int = 6, bad: int = 6, size: int = 32, seed: int = 0
) -> Path:
    """Writes a category in MVTec layout: noisy images, the defective ones with a bright patch."""
    generator = np.random.default_rng(seed)

    def draw(path: Path, *, patch: bool) -> None:
        image = generator.integers(60, 120, (size, size, 3), dtype=np.uint8)
        if patch:
            image[4:10, 4:10] = generator.integers(110, 190)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        if patch:
            mask = np.zeros((size, size), np.uint8)
            mask[4:10, 4:10] = 255
            target = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(target)

    for index in range(train):
        draw(folder / f"train/good/{index:03}.png", patch=False)
    for index in range(good):
        draw(folder / f"test/good/{index:03}.png", patch=False)
    for index in range(bad):
        draw(folder / f"test/spot/{index:03}.png", patch=True)
    return folder


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """A folder with two tiny categories."""
    root = tmp_path_factory.mktemp("toy-data")
    for index, name in enumerate(("plate", "ring")):
        draw_category(root / name, seed=index)
    return root


@pytest.fixture(scope="session")
def ray_session():
    """One Ray instance for all tests of this process."""
    import ray

    from anomtune.search.run.ray_cluster import ray_cluster

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # As on a cluster, nodes have the keys of the object store: drivers hand none over.
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            stack.enter_context(ray_cluster(None))
        yield ray


@pytest.fixture(scope="session")
def ray_address(ray_session) -> str:
    """Where other processes find that instance."""
    return ray_session.get_runtime_context().gcs_address


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `anomtune` in this process; returns exit code, output and errors."""

    from anomtune.cli import main as cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anomtune", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
