"""What trials of a study have in common beside features: kept in the node's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomtune.datasets.io import store

FORMAT = 1  # Raise it when a method computes what it shares otherwise.


class NodeMemo:
    """Keeps tensors by name, for all trainings on this node; see `Memo`.

    Args:
        features: What names the features that all of it is computed from.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self._features = tuple(features)

    def wanted(self, name: Sequence[object]) -> bool:
        """Whether a training on this node has asked for it before.

        Raises:
            StorageError: If the cache cannot be written.
        """
        key = f"asked-{self._key(name)}"
        if store.recall(key) is not None:
            return True
        store.remember(key, "once")
        return False

    def _key(self, name: Sequence[object]) -> str:
        return store.digest(FORMAT, *self._features, *name)

    def __call__(
        self, name: Sequence[object], compute: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns the tensors of a name, computed by whoever asks first.

        Raises:
            StorageError: If the cache cannot be written.
        """

        def build(folder: Path) -> None:
            # Safetensors writes through memory: on a full disk it is an error, not a SIGBUS.
            save_file(dict(compute()), folder / "kept.safetensors")

        def load(folder: Path) -> Mapping[str, Tensor]:
            try:
                return load_file(folder / "kept.safetensors")
            except SafetensorError as error:
                raise ValueError(f"{folder}: damaged ({error})") from None

        return store.obtain("shared", self._key(name), build, load)
