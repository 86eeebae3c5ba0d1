"""Hyperparameter search for visual anomaly detection on a Ray cluster.

A sweep searches every (category, method) pair of a dataset and leaves a directory; its result is
read from there, by whoever has the directory::

    import anomtune as at

    sweep = at.Sweep(
        name="line-3",
        dataset=at.Folder("/data/line-3"),
        methods={"patchcore": {}, "rd4ad": {}},
        trials=50,
    )
    result = at.run(sweep, "sweeps/line-3", on_event=print)
    result.leaderboard  # a pyarrow.Table
    model = result.best("bottle").load()
    for prediction in model.predict(["new/"]):
        print(prediction.path, prediction.score, prediction.anomalous)

What is in ``__all__`` (listed in ``__init__.pyi``) is public; everything else may change. A name is
imported when it is first used: ``import anomtune`` itself imports neither Ray nor torch nor Optuna.
"""

import pkgutil
from importlib.metadata import version

import lazy_loader

# Python started in a checkout finds this folder before an installed anomtune.
__path__ = pkgutil.extend_path(__path__, __name__)

__getattr__, __dir__, _public = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("anomtune")
__all__ = [*_public, "__version__"]  # noqa: PLE0604 - all are strings
