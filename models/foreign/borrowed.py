"""What another library's code does to the process and to random numbers, kept within bounds."""

from __future__ import annotations

import importlib
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import numpy as np
import torch

#: Loggers of libraries that tell of every network that is built.
_TALKATIVE = ("anomalib", "lightning", "lightning.pytorch", "lightning.fabric", "timm")


def imported(name: str) -> Any:
    """Imports a module whose import changes the process, and takes all changes back.

    anomalib and what it needs set environment variables and warning filters, and let their loggers
    speak.
    """
    if name in sys.modules:
        return sys.modules[name]
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    finally:
        for key in set(os.environ) - set(environment):
            del os.environ[key]
        os.environ.update(environment)
        for talkative in _TALKATIVE:
            logging.getLogger(talkative).setLevel(logging.WARNING)


@contextmanager
def quiet() -> Iterator[None]:
    """Runs foreign code without its progress bars and warnings."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Lets all random numbers that foreign code may draw follow a seed; restores them afterwards.

    Args:
        seed: At least 0.
        device: Where the code draws besides the CPU.
    """
    # Foreign code draws from NumPy's global numbers too.
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpu):
        # Not torch.manual_seed, which would seed all GPUs' generators as well.
        torch.default_generator.manual_seed(seed)
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
