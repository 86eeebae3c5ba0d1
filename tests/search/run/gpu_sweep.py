"""Runs a sweep of the toy method on two GPUs of 16 GiB that Ray only believes in.

The toy's ``marker`` says how many GiB it needs; with less it runs out of memory.

Run by test_gpu_sharing.py: python gpu_sweep.py SWEEP.json DIRECTORY
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import ray

from anomtune.search.config import parse_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.sweep import run
from tests.conftest import PLUGIN  # also makes the toy method known

assert PLUGIN.is_dir()


def pretend() -> None:
    """Gives the GPU of this worker a memory, and its runs a need of it."""
    import torch

    from anomtune.search.run import trial, worker
    from anomtune.search.run.packing import memory_limit

    device_bytes = 16 << 30
    now = {}
    open_trial, run_trial = trial.open_trial, trial.run_trial

    def opened(spec):
        now["spec"] = spec
        return open_trial(spec)

    def peak_memory(device):
        spec = now["spec"]
        need = int(spec.training.hyperparameters["marker"] or 2) << 30
        if need > memory_limit(spec.gpu, device_bytes):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return need

    def wait_for_company(gpu):
        """Once, until two runs are on one GPU: others start too slowly for runs that are short."""
        log = Path(os.environ["FAKE_GPU_LOG"])
        here = log.with_suffix(f".gpu-{gpu}-{os.getpid()}")
        here.touch()
        together = log.with_suffix(".together")
        deadline = time.time() + 60
        while not together.exists() and time.time() < deadline:
            if len(list(log.parent.glob(f"{log.name}.gpu-{gpu}-*"))) > 1:
                together.touch()
            time.sleep(0.05)
        here.unlink()

    def logged(spec):
        begin = time.time()
        if spec.gpu < 1:
            wait_for_company(ray.get_gpu_ids()[0])
        try:
            yield from run_trial(spec)
        finally:
            entry = {"share": spec.gpu, "gpu": ray.get_gpu_ids()[0], "begin": begin}
            with Path(os.environ["FAKE_GPU_LOG"]).open("a") as file:
                file.write(json.dumps(entry | {"end": time.time()}) + "\n")

    trial.open_trial, trial.peak_memory = opened, peak_memory
    trial.gpu_memory = lambda device: device_bytes
    trial.limit_memory = lambda device, gpu: None
    worker.run_trial = logged


def main() -> None:
    sweep, directory = sys.argv[1:]
    ray.init(
        address="local",
        num_cpus=3,  # no more than three at once
        num_gpus=2,
        resources={"accelerator_type:A100": 1},
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": pretend},
    )
    with ray_cluster(None):
        result = run(parse_sweep(json.loads(Path(sweep).read_text()), "test"), directory)
    assert result.finished


if __name__ == "__main__":
    main()
