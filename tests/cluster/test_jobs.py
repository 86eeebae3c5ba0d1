"""What is sent to a cluster and under which name; the cluster here is a list."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from anomtune.cluster import jobs
from anomtune.errors import INTERRUPTED, UNUSABLE, SweepError
from anomtune.search.config import parse_sweep
from tests.conftest import PROJECT
from tests.search.conftest import sweep_dict


class Cluster:
    """The job API of a cluster that runs nothing; keeps what it is sent."""

    def __init__(self):
        self.jobs: list[SimpleNamespace] = []
        self.sent: list[dict] = []
        self.files: dict[str, str] = {}
        self.shipped: list[str] = []
        self.stopped: list[str] = []

    def submit_job(self, *, entrypoint, submission_id, runtime_env, metadata):
        if any(job.submission_id == submission_id for job in self.jobs):
            raise RuntimeError(f"Traceback:\n  ...\nValueError: {submission_id} already exists")
        folder = Path(runtime_env["working_dir"])
        self.files = {path.name: path.read_text() for path in folder.iterdir()}
        self.shipped = [Path(path).name for path in runtime_env.get("py_modules", ())]
        self.sent.append(
            {"entrypoint": entrypoint, "runtime_env": runtime_env, "metadata": metadata}
        )
        self.add(submission_id, "PENDING", metadata)
        return submission_id

    def add(self, identity, state, metadata, exit_code=None):
        self.jobs.append(
            SimpleNamespace(
                submission_id=identity,
                status=SimpleNamespace(value=state),
                metadata=metadata,
                start_time=1_700_000_000_000 + len(self.jobs),
                driver_exit_code=exit_code,
            )
        )

    def list_jobs(self):
        return list(self.jobs)

    def stop_job(self, identity):
        self.stopped.append(identity)
        return True

    async def tail_job_logs(self, identity):
        yield "one\n"
        yield "two\n"

    def end(self, state, exit_code=None):
        self.jobs[-1].status = SimpleNamespace(value=state)
        self.jobs[-1].driver_exit_code = exit_code


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def config():
    return parse_sweep(sweep_dict("/data/toys"), "test")


def test_the_sweep_file_and_this_anomtune_are_shipped(cluster, config, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim-4711")
    jobs.submit(cluster, config, "/shared/my toys")
    assert list(cluster.files) == ["sweep.yaml"]
    assert parse_sweep(yaml.safe_load(cluster.files["sweep.yaml"]), "shipped") == config
    [sent] = cluster.sent
    assert sent["entrypoint"].endswith(
        "anomtune sweep sweep.yaml --address auto --dir '/shared/my toys'"
    )
    assert cluster.shipped[0] == "anomtune"
    assert cluster.shipped[1].startswith("anomtune-")
    assert {name: sent["metadata"][name] for name in ("name", "directory", "sweep")} == {
        "name": "toys",
        "directory": "/shared/my toys",
        "sweep": config.digest(),
    }
    assert "geheim-4711" not in json.dumps(sent)


def test_without_shipping_the_nodes_use_their_own(cluster, config):
    jobs.submit(cluster, config, "/shared/toys", ship=False)
    assert cluster.shipped == []


def test_the_same_sweep_is_the_same_job_with_the_next_number(cluster, config):
    first = jobs.submit(cluster, config, "/shared/toys")
    cluster.end("STOPPED")
    second = jobs.submit(cluster, config, "/shared/toys")
    other = jobs.submit(cluster, config, "/shared/others")
    stem = first.removesuffix("-1")
    assert second == f"{stem}-2"
    assert other.endswith("-1")
    assert not other.startswith(stem)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_sweep_that_runs_is_not_started_again(cluster, config, state):
    identity = jobs.submit(cluster, config, "/shared/toys")
    cluster.end(state)
    with pytest.raises(SweepError, match=f"runs there already, as job {identity}"):
        jobs.submit(cluster, config, "/shared/toys")
    assert len(cluster.sent) == 1


def test_of_two_that_are_submitted_at_once_the_cluster_takes_one(cluster, config, monkeypatch):
    jobs.submit(cluster, config, "/shared/toys")
    monkeypatch.setattr(cluster, "list_jobs", list)  # what the second one saw
    with pytest.raises(SweepError, match=r"ValueError: .* already exists$"):
        jobs.submit(cluster, config, "/shared/toys")


def test_jobs_of_others_are_not_ours(cluster, config):
    cluster.add("raysubmit_1", "RUNNING", {"owner": "somebody"})
    cluster.add(None, "RUNNING", None)
    identity = jobs.submit(cluster, config, "/shared/toys")
    assert [job.id for job in jobs.list_jobs(cluster)] == [identity]
    with pytest.raises(SweepError, match="raysubmit_1: no such job"):
        jobs.stop(cluster, "raysubmit_1")
    assert cluster.stopped == []


def test_only_a_job_that_runs_is_stopped(cluster, config):
    identity = jobs.submit(cluster, config, "/shared/toys")
    assert jobs.stop(cluster, identity)
    assert cluster.stopped == [identity]
    cluster.end("SUCCEEDED", 0)
    assert not jobs.stop(cluster, identity)


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", -9, UNUSABLE),
        ("FAILED", None, UNUSABLE),
        ("STOPPED", None, INTERRUPTED),
    ],
)
def test_following_ends_with_the_exit_code_of_the_job(cluster, config, state, exit_code, expected):
    identity = jobs.submit(cluster, config, "/shared/toys")
    cluster.end(state, exit_code)
    lines: list[str] = []
    assert jobs.follow(cluster, identity, lines.append) == expected
    assert lines == ["one\n", "two\n"]


def test_a_connection_that_breaks_is_the_clusters(cluster, config, monkeypatch):
    async def break_off(identity):
        yield "one\n"
        raise ConnectionError("Traceback:\n  ...\nreset by peer")

    identity = jobs.submit(cluster, config, "/shared/toys")
    monkeypatch.setattr(cluster, "tail_job_logs", break_off)
    lines: list[str] = []
    with pytest.raises(SweepError, match=r"the cluster answers: reset by peer$"):
        jobs.follow(cluster, identity, lines.append)
    assert lines == ["one\n"]


def test_an_output_that_cannot_be_written_is_not_the_clusters(cluster, config):
    def write(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    identity = jobs.submit(cluster, config, "/shared/toys")
    with pytest.raises(OSError, match="No space left on device"):
        jobs.follow(cluster, identity, write)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--follow"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_silently(options):
    """As in ``anomtune logs ID -f | head``, of a job that goes on printing."""
    script = f"""
import sys
from anomtune.cluster import connect
from anomtune.cli import main as cli
from tests.cluster.test_jobs import Cluster

class Talkative(Cluster):
    async def tail_job_logs(self, identity):
        while True:
            yield "one more line\\n"

    def get_job_logs(self, identity):
        sys.stdin.read()  # until nobody listens
        return "one more line\\n"

cluster = Talkative()
cluster.add("a-1", "RUNNING", {{"anomtune": "0"}})
connect.connect = lambda *_, **__: cluster
sys.argv = ["anomtune", "logs", "a-1", "--address", "http://127.0.0.1:9", *{options}]
cli.main()
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=PROJECT,
        env=buffered,
        text=True,
    )
    with command:
        try:
            if options:
                assert command.stdout.readline() == "one more line\n"
            command.stdout.close()
            command.stdin.close()
            assert command.wait(120) == 1
            assert command.stderr.read() == ""
        finally:
            command.kill()


@pytest.mark.parametrize(
    ("directory", "here", "expected"),
    [
        ("/shared/a", False, "/shared/a"),
        ("/shared/a/", False, "/shared/a"),
        ("s3://bucket/a/", False, "s3://bucket/a"),
        ("a", True, "{cwd}/a"),
        (None, True, "{cwd}/sweeps/toys"),
    ],
)
def test_where_results_go(directory, here, expected):
    got = jobs.shared_directory(directory, "toys", here=here)
    assert got == expected.format(cwd=Path.cwd())


@pytest.mark.parametrize("directory", ["a", None, "~/a"])
def test_a_relative_directory_means_nothing_elsewhere(directory):
    with pytest.raises(SweepError, match="give an absolute path on storage that all its nodes"):
        jobs.shared_directory(directory, "toys", here=False)


def test_credentials_are_not_sent():
    uri = "s3://AKIAKEY:geheim@bucket/a"
    with pytest.raises(SweepError) as refusal:
        jobs.shared_directory(uri, "toys", here=False)
    assert "geheim" not in str(refusal.value)
    config = parse_sweep(sweep_dict(uri), "test")
    with pytest.raises(SweepError) as refusal:
        jobs.portable(config, here=False)
    assert "geheim" not in str(refusal.value)


def test_a_relative_data_root_is_refused_elsewhere_and_made_absolute_here():
    config = parse_sweep(sweep_dict("data/toys"), "test")
    with pytest.raises(SweepError, match=r"dataset\.root: data/toys is relative"):
        jobs.portable(config, here=False)
    assert jobs.portable(config, here=True).dataset.root == str(Path("data/toys").absolute())


def test_what_is_shipped_works_without_an_installation(tmp_path):
    """As a node sees it: the folders on the path, and no other anomtune."""
    package, info = jobs.unpacked_wheel(tmp_path)
    assert not list(package.rglob("__pycache__"))
    for folder in (package, info):  # Ray puts each into a folder of its own
        (tmp_path / f"on-{folder.name}").mkdir()
        folder.rename(tmp_path / f"on-{folder.name}" / folder.name)
    script = (
        "import anomtune.search.config as m, importlib.metadata as d\n"
        "assert len([e for e in d.entry_points(group='anomtune.methods')"
        " if e.name == 'rd4ad']) == 1\n"
        "found = d.distribution('anomtune')\n"
        "print(m.__file__, found.locate_file(''), m.load_sweep(None).name, found.version)"
    )
    path = os.pathsep.join(str(folder) for folder in tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert shown[0].startswith(str(tmp_path / "on-anomtune"))
    assert shown[1].startswith(str(tmp_path))
    assert shown[2:] == ["demo", metadata.version("anomtune")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: !!python/object/apply:os.system ['touch {marker}']", "not valid YAML"),
        ("name: !!python/name:os.system", "not valid YAML"),
        ("name: !include /etc/passwd", "not valid YAML"),
        ("{{name: ../../escape, dataset: {{name: folder}}, methods: {{toy: {{}}}}}}", "name: "),
        ("{{name: /tmp/escape, dataset: {{name: folder}}, methods: {{toy: {{}}}}}}", "name: "),
    ],
)
def test_a_sweep_file_neither_runs_code_nor_leaves_its_directory(run, tmp_path, text, reason):
    sweep, marker = tmp_path / "sweep.yaml", tmp_path / "marker"
    sweep.write_text(text.format(marker=marker))
    for command in (
        ("sweep", sweep),
        ("submit", sweep, "--address", "http://127.0.0.1:9"),
    ):
        code, _, err = run(*command)
        assert code == 2
        assert reason in err
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../escape", "/escape", "a/../../escape", ".."])
def test_a_category_cannot_lead_out_of_the_directory(run, toy_data, tmp_path, name):
    sweep = tmp_path / "sweep.yaml"
    dataset = {"name": "folder", "root": str(toy_data), "categories": [name]}
    sweep.write_text(yaml.safe_dump(sweep_dict(dataset=dataset)))
    code, _, err = run("sweep", sweep, "--dir", tmp_path / "a/b/c")
    assert code == 2
    assert "dataset.categories: no category" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.yaml"]


def test_an_entrypoint_cannot_be_extended_by_a_directory(cluster, config):
    jobs.submit(cluster, config, "/shared/a; touch /tmp/b $(id)")
    assert cluster.sent[0]["entrypoint"].endswith("--dir '/shared/a; touch /tmp/b $(id)'")


def test_folders_by_name_are_those_of_the_nodes() -> None:
    from anomtune.search.config import Sweep

    def sweep(**dataset: str) -> Sweep:
        return Sweep(name="s", dataset={"name": "folder", **dataset}, methods={"padim": {}})

    there = sweep(normal="/data/ok", anomalous="/data/nok")
    assert jobs.portable(there, here=False) == there
    with pytest.raises(SweepError, match=r"dataset\.anomalous: nok is relative; give the path"):
        jobs.portable(sweep(normal="/data/ok", anomalous="nok"), here=False)
    section = jobs.portable(sweep(normal="ok"), here=True).dataset
    assert section.normal == str(Path("ok").absolute())
