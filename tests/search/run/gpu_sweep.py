"""Runs a sweep of the toy method on GPUs that Ray only believes in, and logs its runs.

Their memory goes by the type that their node announces. The toy's ``marker`` says how many GiB a
run needs: ``5`` everywhere, ``A100=5 T4=6`` by type; with less it runs out of memory. With
``slow=T4`` runs that share a T4 take five times as long. The first run that finds a file LOG.large
takes it away, and is one that needs `LARGE` GiB.

Run by tests as: python gpu_sweep.py SWEEP.json DIRECTORY LOG [ADDRESS]; without an address on a Ray
of its own, with two T4, on which the first runs that share a GPU wait for each other.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[3]))

import ray

from anomtune.search.config import parse_sweep
from anomtune.search.run.ray_cluster import ray_cluster
from anomtune.search.sweep import run
from tests.conftest import PLUGIN  # also makes the toy method known

assert PLUGIN.is_dir()

#: Memory of a GPU, and of a run that finds LOG.large, in GiB.
MEMORY, LARGE = {"A100": 20, "T4": 16}, 12
#: How much longer a run takes that shares a GPU of a type that bears it badly.
SLOWER = 5


class FakeGpu:
    """What a worker is told of its GPU, and what its runs need of it.

    Args:
        log: Where runs are noted, a line for their beginning and one for their end.
        company: Whether the first runs that share a GPU wait for each other.
    """

    def __init__(self, log: Path, *, company: bool) -> None:
        self.log, self.company = log, company
        self.spec = None
        self.type = self.gpu = ""

    def pretend(self) -> None:
        """Takes the place of all that asks a GPU, in this worker."""
        import anomtune_toy

        from anomtune.search.run import trial, worker

        self.open_trial, self.run_trial = trial.open_trial, trial.run_trial
        anomtune_toy.time = SimpleNamespace(sleep=self.sleep)
        trial.open_trial, trial.peak_memory = self.opened, self.peak_memory
        trial.gpu_memory = lambda device: MEMORY[self.type] << 30
        trial.limit_memory = lambda device, gpu: None
        worker.run_trial = self.logged

    def find(self) -> None:
        """Finds out where this worker is."""
        here = ray.get_runtime_context().get_node_id()
        (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
        (name,) = (name for name in node["Resources"] if name.startswith("accelerator_type:"))
        self.type = name.partition(":")[2]
        self.gpu = f"{self.type}-{ray.get_gpu_ids()[0]}"

    @property
    def marker(self) -> str:
        return self.spec.training.hyperparameters["marker"] or "2"

    @property
    def large(self) -> Path:
        """Is there if the run is the large one."""
        return self.log.with_suffix(f".large-{self.spec.record_path.replace('/', '-')}")

    def opened(self, spec):
        self.spec = spec
        return self.open_trial(spec)

    def peak_memory(self, device) -> int:
        import torch

        from anomtune.search.run.packing import memory_limit

        by_type = dict(word.split("=") for word in self.marker.split() if "=" in word)
        need = int(by_type[self.type] if by_type else self.marker)
        need = (LARGE if self.large.exists() else need) << 30
        if need > memory_limit(self.spec.gpu, MEMORY[self.type] << 30):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return need

    def sleep(self, seconds: float) -> None:
        slow = self.spec.gpu < 1 and f"slow={self.type}" in self.marker
        time.sleep(seconds * (SLOWER if slow else 1))

    def logged(self, spec) -> Iterator:
        begin = time.time()
        self.spec = spec
        if not self.type:
            self.find()
        with suppress(FileNotFoundError):
            self.log.with_suffix(".large").rename(self.large)
        self.note(begin=begin)
        if spec.gpu < 1 and self.company:
            self.wait_for_company()
        try:
            yield from self.run_trial(spec)
        finally:
            self.note(begin=begin, end=time.time())

    def note(self, **when: float) -> None:
        entry = {
            "run": self.spec.record_path,
            "share": self.spec.gpu,
            "type": self.type,
            "gpu": self.gpu,
            "large": self.large.exists(),
        }
        with self.log.open("a") as file:
            file.write(json.dumps(entry | when) + "\n")

    def wait_for_company(self) -> None:
        """Once, until two runs are on one GPU: others start too slowly for runs that are short."""
        here = self.log.with_suffix(f".gpu-{self.gpu}-{os.getpid()}")
        here.touch()
        together = self.log.with_suffix(".together")
        deadline = time.time() + 60
        while not together.exists() and time.time() < deadline:
            if len(list(self.log.parent.glob(f"{self.log.name}.gpu-{self.gpu}-*"))) > 1:
                together.touch()
            time.sleep(0.05)
        here.unlink()


def main() -> None:
    sweep, directory, log, *address = sys.argv[1:]
    gpu = FakeGpu(Path(log), company=not address)
    own = {
        "address": "local",
        "num_cpus": 3,  # no more than three at once
        "num_gpus": 2,
        "resources": {"accelerator_type:T4": 1},
        "include_dashboard": False,
    }
    ray.init(
        **({"address": address[0]} if address else own),
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": gpu.pretend},
    )
    with ray_cluster(None):
        result = run(parse_sweep(json.loads(Path(sweep).read_text()), "test"), directory)
    assert result.finished


if __name__ == "__main__":
    main()
