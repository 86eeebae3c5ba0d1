"""Asks every node of a cluster the same question, above all whether it sees the sweep directory.

A directory that only the driver's machine has would take the records, and lose what workers on
other machines write beside them. So nothing is believed before every node has read what the driver
wrote, and the driver what every node wrote.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from anomtune.errors import StorageError
from anomtune.files import temporary_name
from anomtune.search.run.ray_internals import live_nodes as living
from anomtune.search.store.storage import Storage

T = TypeVar("T")

#: Seconds that a node is given for an answer: a dead mount never gives one.
PATIENCE = 60.0
_DRIVER = "driver"


class Node(NamedTuple):
    """A live node of the cluster.

    Attributes:
        id: Ray's name for it, 56 hexadecimal digits.
        host: Its host name and address, for people.
        gpus: How many GPUs Ray counts there.
    """

    id: str
    host: str
    gpus: float


class NoAnswer(NamedTuple):
    """Why a node did not answer."""

    reason: str


def live_nodes() -> list[Node]:
    """Returns the live nodes of the cluster that this process is connected to."""
    return [
        Node(node.id, f"{node.host} ({node.address})", node.resources.get("GPU", 0))
        for node in living(ray.nodes())
    ]


def ask_nodes(
    question: Callable[[Node], T], nodes: Sequence[Node], patience: float = PATIENCE
) -> dict[Node, T | NoAnswer]:
    """Calls a function on every node, on all at once, beside whatever runs there.

    Args:
        question: Importable on the nodes (or a ``functools.partial`` of such a function); called
            with the node that it runs on.
        nodes: Whom to ask.
        patience: Seconds after which a node counts as silent.
    """
    tasks = {
        _ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(question, node): node
        for node in nodes
    }
    answered, silent = ray.wait(list(tasks), num_returns=len(tasks), timeout=patience)
    answers: dict[Node, T | NoAnswer] = {}
    for task in answered:
        try:
            answers[tasks[task]] = ray.get(task)
        except RayError as error:  # the node died, or cannot set up the code
            answers[tasks[task]] = NoAnswer(str(error).strip().splitlines()[-1])
    for task in silent:
        ray.cancel(task, force=True)
        answers[tasks[task]] = NoAnswer(f"no answer within {patience:g} s")
    return {node: answers[node] for node in nodes}


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _ask(question: Callable[[Node], Any], node: Node) -> Any:
    return question(node)


def probe_storage(storage: Storage, nodes: Sequence[Node]) -> dict[Node, str | None]:
    """Returns for every node what is wrong with the sweep directory as seen from there.

    ``None`` = nothing: the node reads what the driver writes, and the driver what the node
    writes. A node that does not see the driver's file writes nothing.
    """
    # Never the same name twice: a network file system remembers what it did not find.
    probe = f"probe-{secrets.token_hex(8)}"
    local = storage.local_root
    directory = storage.location if local is None else str(local)
    try:
        storage.write(_file(probe, _DRIVER), probe.encode())
        answers = ask_nodes(partial(_probe, directory, probe), nodes)
        problems: dict[Node, str | None] = {}
        for node, answer in answers.items():
            if isinstance(answer, NoAnswer):
                problems[node] = answer.reason
            elif answer is None and storage.read(_file(probe, node.id)) != node.id.encode():
                problems[node] = "what it writes there does not arrive"
            else:
                problems[node] = answer
        return problems
    finally:
        for name in (_DRIVER, *(node.id for node in nodes)):
            storage.delete(_file(probe, name))


def _file(probe: str, name: str) -> str:
    # Should the driver be killed meanwhile, the next start of the sweep removes it.
    return temporary_name(f"{probe}-{name}")


def _probe(directory: str, probe: str, node: Node) -> str | None:
    """Runs on a node: reads the driver's file, then leaves one of its own."""
    try:
        storage = Storage(directory)
        if storage.read(_file(probe, _DRIVER)) != probe.encode():
            return "it does not see what the driver writes there"
        storage.write(_file(probe, node.id), node.id.encode())
    except StorageError as error:
        return str(error)
    return None


def require_shared(storage: Storage) -> None:
    """Makes sure that all nodes of the cluster share the sweep directory, if there are several.

    Raises:
        StorageError: Naming the first node that does not.
    """
    nodes = live_nodes()
    if len(nodes) < 2:
        return
    problems = probe_storage(storage, nodes)
    alive = {node.id for node in live_nodes()}  # one that went meanwhile is in nobody's way
    for node, problem in problems.items():
        if problem is not None and node.id in alive:
            raise StorageError(
                f"{storage.location}: not usable from node {node.host}: {problem}; with more than "
                "one node give --dir a folder on a shared file system, or s3://bucket/folder"
            )
