"""Examines every node before a sweep does: what differs, what is missing, and what to do about it.

A node answers for itself, in a task that Ray pins to it. The answers are compared here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pyarrow import ArrowException, fs
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from anomtune.datasets.io.remote import is_uri, mask_uri
from anomtune.datasets.io.store import cache_root
from anomtune.errors import AnomtuneError, StorageError
from anomtune.files import temporary_name
from anomtune.registry import DATASETS
from anomtune.search.config import Sweep
from anomtune.search.decide.study import plan_search
from anomtune.search.preparation import prepare_method
from anomtune.search.run.probe import NoAnswer, Node, ask_nodes, live_nodes, probe_storage
from anomtune.search.run.ray_internals import RAYLET_PID
from anomtune.search.store.storage import Storage

#: Seconds for a node's answer; weights that it has not got may be downloaded meanwhile.
_PATIENCE = 300.0
_GPU_PATIENCE = 120.0
#: MVTec AD, 5,354 images of 256 x 256 pixels, takes 1.1 GB of cache.
_LEAST_SPACE = 2e9
#: S3 refuses requests that are 15 minutes off; people compare times of records much closer.
_MOST_SKEW = 2.0
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
_GPU_CHOICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_COMPARED = ("ray", "torch", "torchvision", "anomtune")


@dataclass(frozen=True)
class Check:
    """One finding on one node.

    Attributes:
        node: Its name for people.
        subject: What was looked at: ``versions``, ``GPUs``, ``weights``, ``images``, ``storage``,
            ``clock``, ``disk`` or ``tokens``.
        good: Whether a sweep may rely on it.
        found: What was seen, in a few words.
        remedy: What to do if it is not good.
    """

    node: str
    subject: str
    good: bool
    found: str
    remedy: str = ""


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


def examine(config: Sweep | None, directory: str | None, address: str | None) -> list[Check]:
    """Examines this machine, or every node of a cluster.

    Args:
        config: A sweep, whose weights and images are looked for.
        directory: A sweep directory, which every node is to write.
        address: Of a Ray cluster; ``None`` for this machine, without Ray.

    Raises:
        SweepError: If there is no cluster at the address, or the directory cannot be understood.
    """
    storage = None if directory is None else Storage(directory)
    if address is None:
        node = Node("", socket.gethostname(), 0)
        checks = judge(node, look(config, node), None)
        return checks if storage is None else [*checks, _check_storage(node, _try_storage(storage))]

    from anomtune.search.run.ray_cluster import ray_cluster  # noqa: PLC0415 - this machine needs no Ray

    with ray_cluster(address):
        nodes = live_nodes()
        answers = ask_nodes(partial(look, config), nodes, _PATIENCE)
        driver = look_at_versions()
        skews = _skews([node for node, answer in answers.items() if isinstance(answer, Findings)])
        stored = {} if storage is None else _probe_storage(storage, nodes)
    listings = {a.images for a in answers.values() if isinstance(a, Findings) and a.images}
    checks = []
    for node, answer in answers.items():
        if isinstance(answer, NoAnswer):
            remedy = "see its raylet log, or take it out of the cluster"
            checks.append(Check(node.host, "versions", False, answer.reason, remedy))
            continue
        checks += judge(node, answer, driver, same_images=len(listings) < 2)
        checks.append(_check_tokens(node, answer))
        if node in skews:
            checks.append(_check_clock(node, skews[node]))
        if node in stored:
            checks.append(_check_storage(node, stored[node]))
    return checks


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
    return {"python": platform.python_version(), **{name: version(name) for name in _COMPARED}}


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
        settings = DATASETS.get(config.dataset.name).settings
        for name, method in config.methods.items():
            prepare_method(plan_search(name, method, settings), config.dataset.root)
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
            filesystem, base = fs.FileSystem.from_uri(root)
        else:
            filesystem, base = fs.LocalFileSystem(), str(Path(root).expanduser().absolute())
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
    except (ArrowException, OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else "cannot be listed"
        return None, f"{mask_uri(root) if is_uri(root) else root}: {reason}"
    files = sorted(f"{info.path[len(base) :]} {info.size}" for info in found if info.is_file)
    return (len(files), hashlib.sha256("\n".join(files).encode()).hexdigest()), None


def judge(
    node: Node, findings: Findings, driver: Mapping[str, str] | None, *, same_images: bool = True
) -> list[Check]:
    """Says of each thing that a node told whether a sweep may rely on it.

    Args:
        node: The node.
        findings: What it told.
        driver: The versions that it must have, those of the driver.
        same_images: Whether all nodes list the same files.
    """
    own = findings.versions
    wanted = driver or own
    others = [f"{n} {own[n]}, not {wanted[n]}" for n in wanted if own[n] != wanted[n]]
    checks = [
        Check(
            node.host,
            "versions",
            not others,
            "; ".join(others) or ", ".join(f"{n} {own[n]}" for n in ("python", "ray", "torch")),
            "start all nodes from one image, or install the driver's versions there",
        ),
        Check(
            node.host,
            "GPUs",
            findings.gpu_problem is None,
            findings.gpu_problem or _counted(findings.gpus),
            "run nvidia-smi there; driver, container runtime and torch's CUDA must fit together",
        ),
        Check(
            node.host,
            "disk",
            findings.space >= _LEAST_SPACE,
            f"{findings.space / 1e9:.0f} GB free",
            f"free some space for {findings.cache}, or set ANOMTUNE_CACHE to a larger disk",
        ),
    ]
    if findings.weights_problem is not None:
        problem = findings.weights_problem  # it names the file and where to put it
        checks.append(Check(node.host, "weights", not problem, problem or "here"))
    if findings.images_problem is not None or findings.images is not None:
        checks.append(_check_images(node, findings, same_images))
    return checks


def _check_images(node: Node, findings: Findings, same: bool) -> Check:
    remedy = "mount the same images there under the same path, or use s3://bucket/folder"
    if findings.images_problem is not None:
        return Check(node.host, "images", False, findings.images_problem, remedy)
    number = findings.images[0] if findings.images else 0
    if not number:
        return Check(node.host, "images", False, "no file in dataset.root", remedy)
    found = f"{number:,} files" if same else f"{number:,} files, not the same as on other nodes"
    return Check(node.host, "images", same, found, remedy)


def _check_tokens(node: Node, findings: Findings) -> Check:
    return Check(
        node.host,
        "tokens",
        findings.auth == "token",
        findings.auth,
        "whoever reaches the cluster runs code on it: start every node with RAY_AUTH_MODE=token",
    )


def _check_clock(node: Node, skew: float) -> Check:
    remedy = "let chrony or another NTP client run there"
    return Check(node.host, "clock", skew <= _MOST_SKEW, f"{skew:.1f} s off", remedy)


def _check_storage(node: Node, problem: str | None) -> Check:
    remedy = "give --dir a folder on a shared file system, or s3://bucket/folder"
    return Check(node.host, "storage", problem is None, problem or "written, read", remedy)


def _skews(nodes: Sequence[Node]) -> dict[Node, float]:
    """Returns by how many seconds, at least, each node's clock is off this machine's."""
    before = time.time()
    answers = ask_nodes(_clock, nodes)
    after = time.time()
    return {
        node: max(before - told, told - after, 0.0)
        for node, told in answers.items()
        if not isinstance(told, NoAnswer)
    }


def _clock(node: Node) -> float:
    return time.time()


def _probe_storage(storage: Storage, nodes: Sequence[Node]) -> Mapping[Node, str | None]:
    with _no_new_folder(storage):
        try:
            return probe_storage(storage, nodes)
        except StorageError as error:
            return dict.fromkeys(nodes, str(error))


def _try_storage(storage: Storage) -> str | None:
    """Returns what is wrong with a sweep directory as seen from this machine alone."""
    token = secrets.token_hex(8)
    name = temporary_name(f"probe-{token}")  # should this be killed, a sweep's start removes it
    with _no_new_folder(storage):
        try:
            storage.write(name, token.encode())
            return None if storage.read(name) == token.encode() else "what is written is not read"
        except StorageError as error:
            return str(error)
        finally:
            with suppress(StorageError):
                storage.delete(name)


@contextmanager
def _no_new_folder(storage: Storage) -> Iterator[None]:
    """Removes the sweep directory and its parents afterwards, those that are new and empty."""
    root = storage.local_root
    folders = () if root is None else (root, *root.parents)
    new = [folder for folder in folders if not os.access(folder, os.F_OK)]
    try:
        yield
    finally:
        for folder in new:
            with suppress(OSError):  # not empty: a sweep has begun there meanwhile
                folder.rmdir()


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def report(checks: Sequence[Check]) -> Group:
    """Returns a table of nodes and subjects, and below it what is to be done."""
    subjects = list(dict.fromkeys(check.subject for check in checks))
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("node", no_wrap=True)
    for subject in subjects:
        table.add_column(subject, overflow="fold")
    for node in dict.fromkeys(check.node for check in checks):
        own = {check.subject: check for check in checks if check.node == node}
        table.add_row(
            escape(node), *(_cell(own[subject]) if subject in own else "" for subject in subjects)
        )
    bad = [check for check in checks if not check.good]
    lines = [
        Text(f"{c.node}: {c.subject}: {'; '.join(filter(None, (c.found, c.remedy)))}", style="red")
        for c in bad
    ]
    return Group(table, *lines, *([] if bad else [Text("All is well.", style="bold green")]))


def _cell(check: Check) -> str:
    return escape(check.found) if check.good else "[bold red]FAIL[/]"
