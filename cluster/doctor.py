"""Examines every node before a sweep does: what differs, what is missing, and what to do about it.

A node answers for itself, in a task that Ray pins to it. The answers are compared here.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from anomtune.cluster.findings import Findings, look, look_at_versions
from anomtune.errors import StorageError
from anomtune.files import temporary_name
from anomtune.search.config import Sweep
from anomtune.search.run.probe import NoAnswer, Node, ask_nodes, live_nodes, probe_storage
from anomtune.search.store.storage import Storage

#: Seconds for a node's answer; weights that it has not got may be downloaded meanwhile.
_PATIENCE = 300.0
#: MVTec AD, 5,354 images of 256 x 256 pixels, takes 1.1 GB of cache.
_LEAST_SPACE = 2e9
#: S3 refuses requests that are 15 minutes off; people compare times of records much closer.
_MOST_SKEW = 2.0


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
