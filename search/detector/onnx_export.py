"""A saved model as an ONNX file, for whoever runs detectors without Python or torch."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.files import appearing_in
from anomtune.models.base import Detector
from anomtune.search.detector.predict import Model

#: Largest difference that rounding explains, relative to the largest value.
_TOLERANCE = 1e-3
_METADATA = ("method", "dataset", "category", "score_rule", "threshold", "map_low", "map_high")


class _Graph(nn.Module):
    """A detector as the function that is exported."""

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.network = detector.network
        self._detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._detector.predict(images)


def export_onnx(model: Model, path: Path) -> float:
    """Writes a model as ONNX and compares what onnxruntime makes of it with the detector.

    The file takes ``images``, uint8 ``(batch, 3, I, I)``, RGB, resized as `Model.predict` does,
    and gives ``maps``, float32 ``(batch, S, S)``, and ``scores``, float32 ``(batch,)``. Threshold
    and range of the heat maps are in its metadata. Weights of 2 GB and more go to a second file
    beside it, ``.data`` after its name.

    Args:
        model: On the CPU.
        path: The file, which is replaced.

    Returns:
        The largest difference of a map or score, relative to the largest value.

    Raises:
        MethodError: If packages are missing, the method's maps cannot be expressed in ONNX, or
            the file gives other values, or it cannot be written; the old file is then as it was.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise MethodError(f"{path}: ONNX takes names in UTF-8 alone; choose another") from None
    try:
        import onnxruntime  # noqa: F401, PLC0415 - optional
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MethodError(
            f"{error.name} is not installed, which an ONNX export needs: "
            "pip install 'anomtune[onnx]'"
        ) from None
    detector = model.detector
    images = _random_images(2, detector.input_size)
    # Once before: constants that are kept must be numbers, not what stands for them in a graph.
    detector.predict(images)
    try:
        # Without gradients from the start: else each change of that mode is a graph of its own.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what torch itself will change one day
            # Exported here: torch.onnx would go on to try ways that take minutes to fail.
            graph = torch.export.export(
                _Graph(detector).eval(),
                (images,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                strict=False,
            )
            program = torch.onnx.export(
                graph,
                input_names=["images"],
                output_names=["maps", "scores"],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds
        cause = next(iter(str(_root(error)).splitlines()), type(error).__name__)
        raise MethodError(f"{model.config.method} cannot be expressed in ONNX: {cause}") from error
    assert program is not None
    for name in _METADATA:
        program.model.metadata_props[f"anomtune.{name}"] = str(getattr(model.config, name))
    try:
        with appearing_in(path.parent) as draft:
            program.save(draft / path.name)
            difference = _compare(detector, draft / path.name)
            if not difference <= _TOLERANCE:
                raise MethodError(
                    f"{model.config.method}: the ONNX file and the detector differ by "
                    f"{difference:.2g} of the largest value, so there is none; please report it"
                )
    except OSError as error:
        raise MethodError(f"{path}: cannot be written: {error.strerror or error}") from None
    return difference


def _compare(detector: Detector[Any], path: Path) -> float:
    """Returns the largest relative difference on batches of one and of three random images."""
    import onnxruntime  # noqa: PLC0415 - optional

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 3):
        images = _random_images(count, detector.input_size)
        expected = detector.predict(images)
        found = session.run(["maps", "scores"], {"images": images.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            values = ours.cpu().numpy()
            worst = max(worst, float(np.abs(values - theirs).max() / np.abs(values).max()))
    return worst


def _random_images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def _root(error: BaseException) -> BaseException:
    """Returns the first of a chain of errors, which is the one that says what cannot be done."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
