"""Files of weights, read as data: nothing in them is ever executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from anomtune.errors import MethodError

#: Ends of the names of files that can be read.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

#: Where checkpoints keep the weights that others should use.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
#: What wrappers put before the names.
_WRAPPERS = ("_orig_mod.", "module.")


def is_file(weights: str) -> bool:
    """Returns whether the hyperparameter ``weights`` is the path of a file."""
    return Path(weights).suffix in SUFFIXES


def find_file(weights: str) -> Path:
    """Returns the file that the hyperparameter ``weights`` names.

    Raises:
        MethodError: If it is not there, or is given by a relative path.
    """
    path = Path(weights).expanduser()
    if not path.is_absolute():
        raise MethodError(f"weights: give {weights} by its absolute path, for every worker")
    if not path.is_file():
        raise MethodError(f"weights: there is no file {weights}")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by name.

    Raises:
        MethodError: If it cannot be read.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a bad file
        raise MethodError(
            f"{path} cannot be read as weights ({type(error).__name__}): replace it"
        ) from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = content.items() if isinstance(content, Mapping) else ()
    found = {_plain(name): value for name, value in tensors if isinstance(value, Tensor)}
    if not found:
        raise MethodError(f"{path} holds no weights by name: give the file of a state_dict")
    return found


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
