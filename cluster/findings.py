"""What a node says of itself: versions, GPUs that compute, weights, images, disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pyarrow import ArrowException, fs

from anomtune.datasets.io.store import cache_root
from anomtune.datasets.io.uri import folder_of, is_uri, mask_uri
from anomtune.errors import AnomtuneError
from anomtune.names import to_name, to_text
from anomtune.search.config import Sweep
from anomtune.search.decide.plan import plan_search
from anomtune.search.preparation import prepare_methods
from anomtune.search.run.probe import Node
from anomtune.search.run.ray_internals import RAYLET_PID

_GPU_PATIENCE = 120.0
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
_GPU_CHOICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
#: Packages that must be the same on all nodes.
COMPARED = ("ray", "torch", "torchvision", "anomtune")


@dataclass(frozen=True)
class Findings:
    """What a node says of itself.

    Attributes:
        versions: By package, and of Python.
        gpus: Names of the GPUs that have computed.
        gpu_problem: Why not all of them have.
        weights_problem: What a method of the sweep misses; empty if nothing, ``None`` if there is
            no sweep.
        images: Number and digest of the files below the data root; ``None`` without one.
        images_problem: Why they cannot be listed.
        space: Free bytes where the cache is.
        cache: Where that is.
        auth: Ray's mode: ``token`` or ``disabled``.
    """

    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    gpu_problem: str | None
    weights_problem: str | None
    images: tuple[int, str] | None
    images_problem: str | None
    space: int
    cache: str
    auth: str


def look(config: Sweep | None, node: Node) -> Findings:
    """Looks around on the machine that it runs on."""
    gpus, gpu_problem = look_at_gpus(node.gpus)
    images, images_problem = look_at_images(config)
    cache = cache_root()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return Findings(
        versions=look_at_versions(),
        gpus=gpus,
        gpu_problem=gpu_problem,
        weights_problem=look_for_weights(config),
        images=images,
        images_problem=images_problem,
        space=shutil.disk_usage(existing).free,
        cache=str(cache),
        auth=os.environ.get("RAY_AUTH_MODE", "disabled").lower(),
    )


def look_at_versions() -> dict[str, str]:
    """Returns the versions that must be the same on all nodes."""
    return {"python": platform.python_version(), **{name: version(name) for name in COMPARED}}


def look_at_gpus(expected: float) -> tuple[tuple[str, ...], str | None]:
    """Lets every GPU that a sweep would use on this machine multiply two matrices.

    In a process of its own: Ray may hide the GPUs from a task that has asked for none, and a driver
    that hangs can be ended.

    Args:
        expected: How many Ray counts here; 0 = all that can be seen.

    Returns:
        Their names, and what is wrong with them.
    """
    if not expected and not any(Path(device).exists() for device in _GPU_DEVICES):
        return (), None
    others = {name: value for name, value in os.environ.items() if name not in _GPU_CHOICES}
    code = f"from {__name__} import compute; compute({math.ceil(expected)})"
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code],
            env={**others, **_chosen_gpus()},
            capture_output=True,
            text=True,
            timeout=_GPU_PATIENCE,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return (), f"no result within {_GPU_PATIENCE:g} s"
    except subprocess.CalledProcessError as error:
        return (), (error.stderr.strip().splitlines() or ["the process died"])[-1]
    names = tuple(json.loads(done.stdout.splitlines()[-1]))
    if len(names) < expected:
        return names, f"torch sees {len(names)} of {expected:g}"
    return names, None


def _chosen_gpus() -> dict[str, str]:
    """Returns the variables that say which of this machine's GPUs are ours.

    On a shared machine the others are in use by somebody else. What counts in a Ray task is the
    environment that the node was started in: Ray changes that of the task.
    """
    raylet = os.environ.get(RAYLET_PID)
    if raylet is None:
        chosen = dict(os.environ)
    else:
        try:
            pairs = os.fsdecode(Path("/proc", raylet, "environ").read_bytes()).split("\0")
            chosen = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        except OSError:  # not Linux, or another user's; an empty variable may be Ray's doing
            chosen = {name: value for name, value in os.environ.items() if value}
    return {name: chosen[name] for name in _GPU_CHOICES if name in chosen}


def compute(most: int) -> None:
    """Multiplies two matrices on GPUs and prints the GPUs' names as JSON.

    Args:
        most: On how many, the first ones: those that Ray hands out; 0 = on all.
    """
    import torch  # noqa: PLC0415 - in a process of its own

    names = []
    for index in range(torch.cuda.device_count())[: most or None]:
        left = torch.rand(256, 256)
        right = left.to(f"cuda:{index}")
        if not torch.allclose((right @ right).cpu(), left @ left, rtol=1e-2):
            raise SystemExit(f"GPU {index} multiplies wrongly")
        names.append(torch.cuda.get_device_name(index))
    print(json.dumps(names))


def look_for_weights(config: Sweep | None) -> str | None:
    """Returns what the methods of a sweep miss on this machine (see `Findings`)."""
    if config is None:
        return None
    try:
        dataset = config.dataset
        plans = (
            plan_search(name, method, dataset.name, category, image_size=config.image_size)
            for category in dataset.categories or (None,)
            for name, method in config.methods.items()
        )
        prepare_methods(plans, dataset, config.image_size)
    except AnomtuneError as error:
        return str(error)
    return ""


def look_at_images(config: Sweep | None) -> tuple[tuple[int, str] | None, str | None]:
    """Lists the data root of a sweep, without fetching anything.

    Returns:
        The number of its files and a digest of their names and sizes; and what is wrong.
    """
    root = None if config is None else config.dataset.root
    if root is None:
        return None, None
    try:
        if is_uri(root):
            filesystem, base = fs.FileSystem.from_uri(folder_of(root)[0])
            found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
            files = [f"{item.path[len(base) :]} {item.size}" for item in found if item.is_file]
        else:
            files = list(_local_files(Path(to_name(root)).expanduser()))
    except (ArrowException, OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else "cannot be listed"
        return None, f"{mask_uri(root) if is_uri(root) else root}: {reason}"
    listing = "\n".join(sorted(files))
    return (len(files), hashlib.sha256(listing.encode()).hexdigest()), None


def _local_files(root: Path) -> Iterator[str]:
    """Yields name and size of every file below a folder."""
    if root.is_file():  # a table
        yield f"/{to_text(root.name)} {root.stat().st_size}"
        return
    os.listdir(root)  # a root that cannot be listed is an error
    for above, _, names in os.walk(root):
        for file in (Path(above, name) for name in names):
            with suppress(OSError):  # a link to nothing
                yield f"/{to_text(file.relative_to(root))} {file.stat().st_size}"
