"""Images that lie in two files, as one array to be indexed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_Images = npt.NDArray[np.uint8]


class Rows:
    """``(N, S, S, 3)`` uint8 images of which some lie in one array and the others in another.

    Args:
        training: The normal training images of a category.
        others: All other images.
        places: ``(N,)``, for each image its row in ``training``, or behind its end in ``others``.
        training_file: Where the former lie.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        training: _Images,
        others: _Images,
        places: npt.NDArray[np.intp],
        training_file: Path,
    ) -> None:
        self.training = training
        self.training_file = training_file
        self._others = others
        self._places = places
        self.shape = (len(places), *training.shape[1:])
        self.nbytes = training.nbytes + others.nbytes

    def are_training(self, rows: npt.NDArray[np.intp]) -> bool:
        """Whether these images, in this order, are what the file of training images holds."""
        return np.array_equal(self._places[rows], np.arange(len(self.training)))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[_Images]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: Any) -> _Images:
        """Returns an image as a view of its file, or several of them, copied."""
        places = self._places[rows]
        first = len(self.training)
        if np.ndim(places) == 0:
            image: _Images = (
                self.training[places] if places < first else self._others[places - first]
            )
            return image
        chosen = np.empty((len(places), *self.shape[1:]), np.uint8)
        trains = places < first
        chosen[trains] = self.training[places[trains]]
        chosen[~trains] = self._others[places[~trains] - first]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("images of two files cannot be one array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)
