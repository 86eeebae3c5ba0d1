"""Every image model of anomalib as a method ``anomalib.NAME``, through one adapter.

Classes are made when they are asked for: ``anomtune.models.anomalib:padim`` is what the method
``anomalib.padim`` means. Hyperparameters and their defaults come from the constructor of the
model, the ranges of those that matter from ``foreign/anomalib.yaml``, which names their sources. A
model that has a memory bank passes over the images once, all others train step by step; neither
needs a Trainer. Maps are taken before the model smooths them, and by default smoothed and scored
as the model does it. Pretrained weights are read from files on the machine and never downloaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from anomtune.errors import MethodError
from anomtune.models.foreign.adapter import AnomalibDetector
from anomtune.models.foreign.borrowed import imported
from anomtune.models.foreign.catalogue import PREFIX, models, why_not
from anomtune.models.foreign.signature import make_hyperparameters
from anomtune.models.foreign.table import entry_of

_HYPERPARAMETERS = "Hyperparameters"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    folder = name.removesuffix(_HYPERPARAMETERS)
    if folder not in models() or entry_of(folder).refused is not None:
        raise AttributeError(why_not(PREFIX + folder))
    method = _made(folder)
    return method if name == folder else method.Hyperparameters


@cache
def _made(folder: str) -> type[AnomalibDetector]:
    """Returns the method of a model.

    Raises:
        MethodError: If the model is of another kind than the adapter knows.
    """
    model = getattr(imported(f"anomalib.models.image.{folder}"), models()[folder])
    components = imported("anomalib.models.components")
    if not issubclass(model, components.AnomalibModule):
        raise MethodError(f"{PREFIX}{folder}: it is no AnomalibModule")
    entry = entry_of(folder)
    one_pass = issubclass(model, components.MemoryBankMixin)
    hyperparameters = make_hyperparameters(
        f"{folder}{_HYPERPARAMETERS}", __name__, model, entry, one_pass=one_pass
    )
    attributes = {
        "__module__": __name__,
        "__qualname__": folder,
        "__doc__": f"anomalib's {model.__name__}: {entry.paper}. Licence: {entry.licence}.",
        "Hyperparameters": hyperparameters,
        "name": folder,
        "model": model,
        "entry": entry,
        "one_pass": one_pass,
        "smallest_input": entry.smallest,
        "align_corners": entry.align_corners,
    }
    return type(folder, (AnomalibDetector,), attributes)
