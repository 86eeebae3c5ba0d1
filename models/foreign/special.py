"""What some models need before or beside their training that others do not.

Each function is named in a table at the end by the model it is for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomtune.errors import MethodError
from anomtune.models.foreign.borrowed import imported
from anomtune.models.images.procedural import procedural_textures

if TYPE_CHECKING:
    from anomtune.models.foreign.loop import Batches

#: Textures drawn where a model has no images of other things.
_TEXTURES = 64


class Others:
    """Images of other things, one at a time and for ever, in the place of a data loader.

    Which one comes next is drawn from PyTorch's random numbers, as all that a step draws.

    Args:
        images: float32 in [0, 1], ``(M, 3, I, I)``.
    """

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __next__(self) -> tuple[Tensor, None]:
        row = int(torch.randint(len(self._images), (1,)))
        return self._images[row : row + 1], None

    def __iter__(self) -> Iterator[tuple[Tensor, None]]:
        return self


def _efficient_ad_arguments(given: dict[str, Any], side: int) -> dict[str, Any]:
    """Images of other things come from the detector: no folder is looked at."""
    return {**given, "imagenet_dir": given["imagenet_dir"] or tempfile.gettempdir()}


def _draem_arguments(given: dict[str, Any], side: int) -> dict[str, Any]:
    """DRAEM downloads DTD unless its folder is there: one that is empty is as good as none."""
    return {**given, "dtd_dir": given["dtd_dir"] or tempfile.gettempdir()}


def _draem_built(model: Any, hyperparameters: Any, side: int) -> None:
    """Damage without a folder of images is coloured noise."""
    if hyperparameters.dtd_dir is None:
        model.augmenter.anomaly_source_paths = []


def _dsr_start(model: Any, hyperparameters: Any, batches: Batches, others: Tensor | None) -> None:
    """The discrete model is downloaded by anomalib: here it is read from where it would lie."""
    if hyperparameters.weights == "pretrained":
        model.model.load_pretrained_discrete_model_weights(_dsr_file(), model.device)


def _dsr_file() -> Path:
    folder = imported("anomalib.utils.path").get_pretrained_weights_dir() / "dsr"
    module = imported("anomalib.models.image.dsr.lightning_model")
    path: Path = folder / module.WEIGHTS_DOWNLOAD_INFO.name
    if not path.is_file():
        raise MethodError(
            f"no weights of DSR's discrete model, and nothing is downloaded: put {path.name} of "
            f"{module.WEIGHTS_DOWNLOAD_INFO.url} into {folder}, or use weights: random"
        )
    return path


def _efficient_ad_start(
    model: Any, hyperparameters: Any, batches: Batches, others: Tensor | None
) -> None:
    """Reads the teacher, and measures what it says of the training images."""
    if hyperparameters.weights == "pretrained":
        state = torch.load(_efficient_ad_file(model), map_location="cpu", weights_only=True)
        model.model.teacher.load_state_dict(state)
    model.model.mean_std.update(model.teacher_channel_mean_std(batches))


def _efficient_ad_goes_on(
    model: Any, hyperparameters: Any, batches: Batches, others: Tensor | None
) -> None:
    """Shows the student images of other things, which anomalib takes from Imagenette."""
    if others is None:
        generator = torch.Generator().manual_seed(0)
        side = hyperparameters.input_size(model.seen_size)
        others = procedural_textures(_TEXTURES, side, generator, torch.device("cpu"))
    else:
        others = others.float() / 255
    model.imagenet_iterator = Others(others.to(model.device))


def _efficient_ad_ends(model: Any, hyperparameters: Any, batches: Batches) -> None:
    """Normalises the two maps by quantiles over the training images.

    anomalib takes those of its validation set, which a training here does not see.
    """
    model.model.eval()
    model.model.quantiles.update(model.map_norm_quantiles(batches))


def _efficient_ad_file(model: Any) -> Path:
    folder = imported("anomalib.utils.path").get_pretrained_weights_dir()
    name = f"pretrained_teacher_{model.model_size.value}.pth"
    path: Path = folder / "efficientad_pretrained_weights" / name
    if not path.is_file():
        module = imported("anomalib.models.image.efficient_ad.lightning_model")
        raise MethodError(
            f"no weights of EfficientAD's teacher, and nothing is downloaded: unpack "
            f"{module.WEIGHTS_DOWNLOAD_INFO.url} into {folder}, or use weights: random"
        )
    return path


def _cfa_start(model: Any, hyperparameters: Any, batches: Batches, others: Tensor | None) -> None:
    """Makes the mean features of the training images the centres."""
    model.model.initialize_centroid(data_loader=batches)


def _dfkde_start(model: Any, hyperparameters: Any, batches: Batches, others: Tensor | None) -> None:
    """Needs as many images as components: anomalib would learn nothing, and fail later."""
    count, least = batches.count, hyperparameters.n_pca_components
    if count < least:
        raise MethodError(
            f"n_pca_components {least} of {count} training images: use {count} or fewer"
        )


def _dfm_arguments(given: dict[str, Any], side: int) -> dict[str, Any]:
    if given["score_type"] == "nll":
        raise MethodError("score_type nll: fails in anomalib (it calls torch.mean with a device)")
    return given


def _cflow_built(model: Any, hyperparameters: Any, side: int) -> None:
    """Needs so many positions in every batch; the last of a pass may have few images."""
    network, wanted = model.model, hyperparameters.fiber_batch_size
    with torch.no_grad():
        maps = network.encoder.eval()(torch.zeros(1, 3, side, side))
    positions = min(one.shape[-2] * one.shape[-1] for one in maps.values())
    model.smallest_batch = max(2, -(-wanted // positions))
    if model.smallest_batch > hyperparameters.batch_size:
        raise MethodError(
            f"fiber_batch_size {wanted}: {hyperparameters.batch_size} images have "
            f"{positions * hyperparameters.batch_size} positions in the coarsest layer: use fewer, "
            "a larger batch_size or a larger resolution"
        )


def _fre_built(model: Any, hyperparameters: Any, side: int) -> None:
    """Learns features as long as they are, which follows from the size of the images."""
    network = model.model
    network.eval()
    with torch.no_grad():
        features = network.feature_extractor(torch.zeros(1, 3, side, side))[network.layer]
        pooled = torch.nn.functional.avg_pool2d(features, network.pooling_kernel_size)
    kind = type(network.fre_model)
    network.fre_model = kind(pooled.numel(), hyperparameters.latent_dim)
    network.train()


def _super_add_arguments(given: dict[str, Any], side: int) -> dict[str, Any]:
    if side < given["patch_size"]:
        raise MethodError(
            f"images of {side} pixels are less than a patch of {given['patch_size']}: set a "
            "larger resolution, or patch_size and patch_overlap to less"
        )
    return given


def _side(name: str, *, pair: bool) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """Returns what gives a constructor the side of the images."""

    def arguments(given: dict[str, Any], side: int) -> dict[str, Any]:
        return {**given, name: (side, side) if pair else side}

    return arguments


#: Changes what a constructor is given.
ARGUMENTS: Mapping[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "dfm": _dfm_arguments,
    "draem": _draem_arguments,
    "efficient_ad": _efficient_ad_arguments,
    "foundad": _side("image_size", pair=False),
    "glass": _side("input_shape", pair=True),
    "super_add": _super_add_arguments,
}
#: Changes a model that was built.
BUILT: Mapping[str, Callable[[Any, Any, int], None]] = {
    "cflow": _cflow_built,
    "draem": _draem_built,
    "fre": _fre_built,
}
#: Before the first step, in the place of Lightning's ``on_train_start``.
STARTS: Mapping[str, Callable[[Any, Any, Any, Tensor | None], None]] = {
    "cfa": _cfa_start,
    "dfkde": _dfkde_start,
    "dsr": _dsr_start,
    "efficient_ad": _efficient_ad_start,
}
#: Before the steps of every part of a training.
GOES_ON: Mapping[str, Callable[[Any, Any, Any, Tensor | None], None]] = {
    "efficient_ad": _efficient_ad_goes_on,
}
#: After them.
ENDS: Mapping[str, Callable[[Any, Any, Any], None]] = {"efficient_ad": _efficient_ad_ends}
#: Files that a model reads when it starts, for models that are not asked when they are built.
FILES: Mapping[str, Callable[[Any], Path]] = {
    "dsr": lambda model: _dsr_file(),
    "efficient_ad": _efficient_ad_file,
}
