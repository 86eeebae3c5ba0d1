"""Every node must see the sweep directory; here nodes are folders, or one real one asked twice."""

from __future__ import annotations

import time

import pytest

from anomtune.errors import StorageError
from anomtune.search.run import probe
from anomtune.search.run.probe import NoAnswer, Node, ask_nodes, probe_storage, require_shared
from anomtune.search.store.storage import Storage

HERE, THERE = Node("aa", "here (10.0.0.1)", 0), Node("bb", "there (10.0.0.2)", 1)


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Two nodes; the second sees the folder that is given instead of the driver's."""

    def make(seen_there=None, answer=None):
        def ask(question, nodes, patience=0.0):
            answers = {}
            for node in nodes:
                directory, folder = question.args
                if node == THERE and answer is not None:
                    answers[node] = answer
                    continue
                if node == THERE and seen_there is not None:
                    directory = str(seen_there)
                answers[node] = question.func(directory, folder, node)
            return answers

        monkeypatch.setattr(probe, "ask_nodes", ask)
        monkeypatch.setattr(probe, "live_nodes", lambda: [HERE, THERE])
        return Storage(tmp_path / "driver")

    return make


def test_a_shared_directory_is_good_and_left_as_it_was(cluster, tmp_path):
    storage = cluster()
    assert probe_storage(storage, [HERE, THERE]) == {HERE: None, THERE: None}
    require_shared(storage)
    assert list((tmp_path / "driver").iterdir()) == []


def test_a_node_with_a_directory_of_its_own_is_named_and_not_written_to(cluster, tmp_path):
    other = tmp_path / "other"
    storage = cluster(seen_there=other)
    with pytest.raises(StorageError, match=r"not usable from node there \(10\.0\.0\.2\): it does"):
        require_shared(storage)
    assert not other.exists()
    assert list((tmp_path / "driver").iterdir()) == []


def test_what_a_node_writes_must_arrive(cluster, monkeypatch):
    storage = cluster()
    monkeypatch.setattr(probe, "_probe", lambda *_: None)  # claims that it wrote
    problems = probe_storage(storage, [HERE, THERE])
    assert set(problems.values()) == {"what it writes there does not arrive"}


def test_a_node_that_may_not_write_says_why(cluster, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    storage = cluster(seen_there=blocked / "below")
    problem = probe_storage(storage, [HERE, THERE])[THERE]
    assert problem
    assert "cannot read" in problem


def test_a_silent_node_is_named(cluster):
    storage = cluster(answer=NoAnswer("no answer within 60 s"))
    with pytest.raises(StorageError, match=r"there .*: no answer within 60 s; with more than one"):
        require_shared(storage)


def test_one_node_may_keep_its_results_to_itself(cluster, monkeypatch, tmp_path):
    storage = cluster(seen_there=tmp_path / "other")
    monkeypatch.setattr(probe, "live_nodes", lambda: [HERE])
    require_shared(storage)
    assert not (tmp_path / "driver").exists()


def _sleep_longer(node):
    time.sleep(60)


def _raise_on(node):
    raise ValueError(f"broken on {len(node.id)}")


@pytest.mark.ray
def test_real_nodes_answer_fail_and_stay_silent(ray_session, tmp_path):
    nodes = probe.live_nodes()
    assert len(nodes) == 1
    assert probe_storage(Storage(tmp_path / "new"), nodes) == {nodes[0]: None}
    [failed] = ask_nodes(_raise_on, nodes).values()
    assert isinstance(failed, NoAnswer)
    assert "broken on 56" in failed.reason
    [silent] = ask_nodes(_sleep_longer, nodes, patience=0.5).values()
    assert silent == NoAnswer("no answer within 0.5 s")


def test_a_node_that_went_meanwhile_is_in_nobodys_way(cluster, monkeypatch):
    storage = cluster(answer=NoAnswer("the node died"))
    seen = iter([[HERE, THERE], [HERE]])
    monkeypatch.setattr(probe, "live_nodes", lambda: next(seen))
    require_shared(storage)


def test_what_a_killed_driver_leaves_is_removed_at_the_next_start(cluster, monkeypatch, tmp_path):
    storage = cluster(answer=NoAnswer("killed"))
    monkeypatch.setattr(Storage, "delete", lambda *_: None)
    probe_storage(storage, [HERE, THERE])
    assert len(list((tmp_path / "driver").iterdir())) == 2
    storage.delete_left_overs()
    assert list((tmp_path / "driver").iterdir()) == []
