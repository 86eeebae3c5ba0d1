"""What a process is like that a library may change, for scripts that are run by themselves."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any

# What anomtune stands on. Importing it changes a process as well, and is its own affair.
import aiohttp.web  # noqa: F401
import jinja2  # noqa: F401
import numpy as np
import optuna
import PIL.Image  # noqa: F401
import plotly.graph_objects
import plotly.subplots
import plotly.tools  # noqa: F401
import pyarrow.parquet  # noqa: F401
import ray
import ray.job_submission
import ray.tune
import requests
import scipy.stats  # noqa: F401
import sqlalchemy  # noqa: F401
import torch
import torch.utils.tensorboard
import torchvision.models  # noqa: F401
import typer  # noqa: F401
from optuna.samplers._tpe import _truncnorm  # noqa: F401


def process_state() -> dict[str, Any]:
    """Returns all of it, in values that can be compared."""
    state: dict[str, Any] = {f"environment {name}": value for name, value in os.environ.items()}
    loggers = logging.root.manager.loggerDict
    for name in ("root", *loggers):
        logger = logging.root if name == "root" else loggers[name]
        if isinstance(logger, logging.Logger):
            # What Ray says in colours or not is set in the formatters.
            formats = [handler.formatter and handler.formatter._fmt for handler in logger.handlers]
            state[f"logger {name}"] = (
                logger.level,
                list(logger.handlers),
                formats,
                list(logger.filters),
                logger.propagate,
                logger.disabled,
            )
    for number in signal.valid_signals():
        state[f"handler of signal {number}"] = signal.getsignal(number)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "optuna":
            state |= {
                f"{name}.{key}": id(value)
                for key, value in vars(module).items()
                if callable(value) or isinstance(value, (int, float, str))
            }
    return state | {
        "warning filters": list(warnings.filters),
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "exception hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "fault handler": faulthandler.is_enabled(),
        "garbage collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "threads of torch": torch.get_num_threads(),
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.initial_seed(),
        ),
        "random numbers of NumPy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "verbosity of Optuna": optuna.logging.get_verbosity(),
        "folder": os.getcwd(),
        "Ray": ray.is_initialized(),
        "other": (requests.adapters.DEFAULT_RETRIES, ray.tune.Trainable, sys.getrecursionlimit()),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns what differs; loggers and names that are new are the affair of who made them."""
    return [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name, ...) != after.get(name, ...)
        and not (name not in before and name.startswith(("logger", "optuna")))
    ]
