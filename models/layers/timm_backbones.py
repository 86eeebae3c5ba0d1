"""Encoders from timm, by its names: three of the maps that its ``features_only`` gives.

Of networks that have maps of strides 4, 8 and 16 these are taken, as of torchvision's; of others
three that lie evenly, which of a vision transformer are the tokens after a quarter, a half and
three quarters of its blocks, as maps (ViTAD, Zhang et al. 2023: blocks 3, 6 and 9 of 12). What
lies behind the third is left out.

timm is never let near a network connection: weights are read from files that are here already.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from anomtune.errors import MethodError, nearest, suggest
from anomtune.models.images.pixels import IMAGENET_MEAN, IMAGENET_STD
from anomtune.models.layers.encoder import ChangeMap, Encoder, use_strided_depthwise
from anomtune.models.layers.weights import find_file, read_weights

if TYPE_CHECKING:
    from types import ModuleType

#: Third stages of so many channels are decoded by bottleneck blocks, as of ResNets that wide.
_WIDE = 512


def _timm() -> ModuleType:
    try:
        import timm  # noqa: PLC0415 - optional
    except ImportError as error:
        raise MethodError(
            f"{error.name} is not installed, which backbones of timm need: "
            "pip install 'anomtune[timm]'"
        ) from None
    return cast("ModuleType", timm)


@dataclass(frozen=True)
class Pyramid:
    """Which maps of a network are taken.

    Attributes:
        indices: Their numbers among all that ``features_only`` can give.
        modules: Names of the modules that they come out of.
        strides: Pixels between neighbouring positions.
        own_size: Side of the images that the network was published for.
        sized: Whether it is built for one size of images.
    """

    indices: tuple[int, int, int]
    modules: tuple[str, str, str]
    strides: tuple[int, int, int]
    own_size: int
    sized: bool


class TimmEncoder(Encoder):
    """One of timm's networks as an encoder.

    It takes images that are normalised as for ImageNet, like all encoders, and sees them as its
    own weights want them normalised. Nothing in it is dropped at random.

    Args:
        name: As timm knows it.
        size: Side of the images in pixels; ``None``: what it was published for.
        weights: By name, as timm's files have them; ``None``: as initialised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, size: int | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        levels = pyramid_of(name)
        self.name, self._size, self._levels = name, size or levels.own_size, levels
        self.network = _create(name, levels, self._size, weights)
        first, second, third = self.network.feature_info.channels()
        self.channels = (first, second, third)
        self.strides = levels.strides
        if self.channels[2] >= _WIDE and not any(width % 4 for width in self.channels):
            self.expansion = 4
        self._last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        for module in self.network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if hasattr(module, "drop_prob"):
                cast("Any", module).drop_prob = 0.0
        _cut_blocks(self.network, levels.modules[2])
        use_strided_depthwise(self.network)
        mean, std = _pixels(name)
        self._normalised = (mean, std) == (IMAGENET_MEAN, IMAGENET_STD)
        wide = torch.tensor((IMAGENET_MEAN, IMAGENET_STD, mean, std))[:, :, None, None]
        self.register_buffer("scale", wide[1] / wide[3], persistent=False)
        self.register_buffer("shift", (wide[0] - wide[2]) / wide[3], persistent=False)

    def maps(self, images: Tensor, change: ChangeMap | None = None) -> list[Tensor]:
        """Returns the three maps; each is changed before what follows it sees it.

        Raises:
            MethodError: If they are to be changed and are not on the way from one to the next.
        """
        x = images if self._normalised else images * self.scale + self.shift
        if change is None:
            maps = self.network(x)
        else:
            with _changing(self, change) as changed:
                maps = self.network(x)
            if not torch.compiler.is_compiling() and not _same(maps, changed):
                raise self._unchangeable()
        return [found.permute(0, 3, 1, 2) if self._last else found for found in maps]

    def digest(self) -> str:
        """Returns what names the network, its weights and statistics, and how they are used."""
        return f"{self.name} {_timm().__version__} {self._size} {super().digest()}"

    def _unchangeable(self) -> MethodError:
        return MethodError(
            f"the maps of timm/{self.name} are not on the way from one to the next, so they "
            "cannot be matched: set scoring.fdm to none"
        )


def check_name(name: str) -> None:
    """Makes sure that timm has a network with feature maps of that name.

    Raises:
        MethodError: If not, or timm is not installed.
    """
    timm = _timm()
    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        meant = nearest(network, timm.list_models())
        raise MethodError(
            f"timm {timm.__version__} has no network {network!r}"
            + (f"; did you mean {meant!r}?" if meant else "")
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{network}.*")]
    if tag and tag not in tags:
        raise MethodError(f"timm's {network} has no weights {tag!r}{suggest(tag, tags)}")
    pyramid_of(name)


def check_input(
    name: str, side: int, *, step: int = 1, exact: bool = False, unit: bool = False
) -> None:
    """Makes sure that a network can see images of a size; see `backbones.check_input`."""
    check_name(name)
    if unit and _pixels(name) != (IMAGENET_MEAN, IMAGENET_STD):
        raise MethodError(
            f"pixels: timm/{name} has its own way to normalise them; set pixels to imagenet, "
            "which means that one here"
        )
    levels = pyramid_of(name)
    first, second, third = levels.strides
    # Cut into patches, an image loses what is left over on the right and below.
    patches = first == third or first.bit_count() > 1
    whole = math.lcm(step, *((first, second, 2 * third) if exact else (first,) if patches else ()))
    try:
        sides = None if side % whole else _sides(name, side)
        reason = ""
    except MethodError as error:
        sides, reason = None, f": {error}"
    if sides is None:
        other = max(1, round(side / whole)) * whole
        use = f"use {other} or another multiple of {whole}" if other != side else "use another size"
        raise MethodError(
            f"images of {side} x {side} pixels do not suit timm/{name}: {use} (it was published "
            f"for {levels.own_size}){reason}"
        )
    expected = tuple(side // stride for stride in levels.strides)
    halved = all(ratio.bit_count() == 1 for ratio in (second // first, third // second))
    if exact and not (sides == expected and halved):
        raise MethodError(
            f"the maps of timm/{name} have {', '.join(map(str, sides))} positions a side, which do "
            "not double from one to the next: nothing can be decoded to them; use it with "
            "patchcore or padim"
        )


@cache
def check_stages(name: str) -> None:
    """Makes sure that the maps of a network lie on one way; see `backbones.check_stages`."""
    check_name(name)
    with _apart("cpu"), torch.no_grad():
        encoder = TimmEncoder(name).eval()
        side = pyramid_of(name).own_size
        encoder.maps(torch.zeros(1, 3, side, side), lambda _, found: 2 * found + 1)


def weights_file(name: str, weights: str) -> Path:
    """Returns the file of a network's weights, which is not read yet.

    timm's own are looked for in torch's hub cache, under the network's full name with the ending
    ``.safetensors`` or as timm's address calls the file, then in Hugging Face's cache.

    Args:
        name: As timm knows it.
        weights: ``imagenet`` for timm's own, or a file.

    Raises:
        MethodError: If there is none; says which file to put where.
    """
    check_name(name)
    if weights != "imagenet":
        return find_file(weights)
    config = _config(name)
    if not (config.url or config.hf_hub_id):
        raise MethodError(f"timm has no weights of {name}: set weights to a file, or to random")
    full = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    here = [folder / f"{full}.safetensors"]
    if config.url and not config.custom_load:
        here.append(folder / PurePosixPath(config.url).name)
    here += _in_hub_cache(config.hf_hub_id, config.hf_hub_filename)
    found = next((path for path in here if path.is_file()), None)
    if found is None:
        hub = f"https://huggingface.co/{config.hf_hub_id}"
        source = f"model.safetensors of {hub}" if config.hf_hub_id else config.url
        to = here[0] if config.hf_hub_id else here[-1]
        raise MethodError(
            f"no weights of timm/{full}, and timm downloads none here: put {source} there as "
            f"{to}, or set weights to a file"
        )
    return found


def load(name: str, file: Path | None, size: int | None) -> TimmEncoder:
    """Returns a new encoder.

    Args:
        name: As timm knows it.
        file: Its weights; ``None``: as it is initialised.
        size: Side of the images in pixels; ``None``: what it was published for.

    Raises:
        MethodError: If there is no such network, or the file is not one of it.
    """
    check_name(name)
    encoder = TimmEncoder(name, size)
    if file is not None:
        stat = file.stat()
        encoder.load_state_dict(_state(name, file, size, stat.st_size, stat.st_mtime_ns))
    return encoder


@cache
def _state(name: str, file: Path, size: int | None, length: int, changed: int) -> dict[str, Tensor]:
    """Returns the state of an encoder with weights of a file; a worker reads each once.

    timm takes what fits and leaves the rest as it was initialised. Two networks that were
    initialised otherwise differ in what is left.
    """
    weights = read_weights(file)
    states = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                states.append(TimmEncoder(name, size, weights).state_dict())
            except Exception as error:  # a file of something else may raise anything
                reason = " ".join(str(error).split())
                raise MethodError(f"{file} does not fit timm/{name}: {reason}") from error
    for key, value in states[0].items():
        # Variances begin as ones whatever the seed: they count only if the file has such.
        untouched = key.endswith("running_var") and not any(
            name.endswith("running_var") and torch.equal(other, value)
            for name, other in weights.items()
        )
        if untouched or not torch.equal(value, states[1][key]):
            raise MethodError(
                f"{file} does not fit timm/{name}: no {key.removeprefix('network.')} in it; its "
                f"first is {next(iter(weights))}"
            )
    return states[0]


@cache
def pyramid_of(name: str) -> Pyramid:
    """Returns which maps of a network are taken.

    Raises:
        MethodError: If it has no three maps.
    """
    with _apart("meta"):
        try:
            network = _timm().create_model(name, pretrained=False, features_only=True)
        except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise MethodError(f"timm/{name} gives no feature maps: {reason}") from error
    all_levels = network.feature_info.info
    strides = [level["reduction"] for level in all_levels]
    if len(strides) < 3:
        raise MethodError(f"timm/{name} gives {len(strides)} feature maps, and three are needed")
    if {4, 8, 16} <= set(strides):
        indices = [len(strides) - 1 - strides[::-1].index(stride) for stride in (4, 8, 16)]
    elif len(strides) == 3:
        indices = [0, 1, 2]
    else:
        indices = [max(1, round(quarter * len(strides) / 4)) - 1 for quarter in (1, 2, 3)]
    config = _config(name)
    first, second, third = indices
    return Pyramid(
        (first, second, third),
        (all_levels[first]["module"], all_levels[second]["module"], all_levels[third]["module"]),
        (strides[first], strides[second], strides[third]),
        config.input_size[-1],
        bool(config.fixed_input_size),
    )


@cache
def _sides(name: str, size: int) -> tuple[int, ...]:
    """Returns the sides of the maps of images of a size.

    Raises:
        MethodError: If the network refuses them.
    """
    for place in ("meta", "cpu"):  # a few networks cannot do without numbers
        try:
            with _apart(place), torch.no_grad():
                maps = TimmEncoder(name, size).eval()(torch.zeros(1, 3, size, size))
            return tuple(found.shape[-1] for found in maps)
        except Exception as error:  # noqa: BLE001 - each network has its own way to refuse
            reason = " ".join(str(error).split())
    raise MethodError(reason)


def _create(name: str, levels: Pyramid, size: int, weights: Mapping[str, Tensor] | None) -> Any:
    options: dict[str, Any] = {"img_size": size} if levels.sized else {}
    if weights is not None:
        overlay = {"state_dict": dict(weights), "custom_load": False}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    with _quiet():
        return _timm().create_model(
            name, features_only=True, out_indices=list(levels.indices), **options
        )


def _cut_blocks(network: nn.Module, last: str) -> None:
    """Leaves out the stages behind the last map, which timm keeps in some networks."""
    name, _, number = last.partition(".")
    stages = getattr(network, name, None)
    if isinstance(stages, nn.Sequential) and number.isdecimal():
        setattr(network, name, stages[: int(number) + 1])


@contextmanager
def _changing(encoder: TimmEncoder, change: ChangeMap) -> Iterator[list[Tensor]]:
    """Lets the modules that maps come out of give changed ones; yields these as they come."""
    changed: list[Tensor] = []
    handles = []
    known = dict(encoder.network.named_modules())
    for number, name in enumerate(encoder._levels.modules, start=1):
        # As timm calls it in the wrapped network, which may be rearranged.
        names = (name, name.replace(".", "_", 1), f"model.{name}")
        module = next((known[candidate] for candidate in names if candidate in known), None)
        if module is None:
            raise encoder._unchangeable()

        def hook(_: nn.Module, __: Any, output: Any, number: int = number) -> Tensor:
            given = _as_map(encoder, output, number)
            after = change(number, given).to(given.dtype)
            result = _as_output(after, output, last=encoder._last)
            changed.append(result if output.ndim == 4 else after)
            return result

        handles.append(module.register_forward_hook(hook))
    try:
        yield changed
    finally:
        for handle in handles:
            handle.remove()


def _as_map(encoder: TimmEncoder, output: Any, number: int) -> Tensor:
    """Returns the map ``(B, C, h, w)`` that a module gave, maybe as tokens."""
    if isinstance(output, Tensor):
        channels = encoder.channels[number - 1]
        if output.ndim == 4 and output.shape[3 if encoder._last else 1] == channels:
            return output.permute(0, 3, 1, 2) if encoder._last else output
        side = encoder._size // encoder.strides[number - 1]
        if output.ndim == 3 and output.shape[2] == channels and output.shape[1] >= side**2:
            return output[:, -(side**2) :].mT.reshape(len(output), channels, side, side)
    raise encoder._unchangeable()


def _as_output(after: Tensor, output: Tensor, *, last: bool) -> Tensor:
    """Returns a changed map as the module gave it; of tokens, classes and registers as before."""
    if output.ndim == 4:
        return after.permute(0, 2, 3, 1) if last else after
    tokens = after.flatten(2).mT
    return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)


def _same(maps: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(maps) == len(others) and all(map(torch.equal, maps, others))


def _config(name: str) -> Any:
    config = _timm().get_pretrained_cfg(name)
    return config if config is not None else _timm().models.PretrainedCfg()


def _pixels(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation that a network wants pixels in ``[0, 1]`` normalised by."""
    config = _config(name)
    return tuple(config.mean), tuple(config.std)


def _in_hub_cache(repository: str | None, file: str | None) -> list[Path]:
    """Returns the files of a repository that are in Hugging Face's cache; asks nobody."""
    if repository is None:
        return []
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - timm's own way
    except ImportError:
        return []
    names = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    found = [try_to_load_from_cache(repository, name) for name in names]
    return [Path(path) for path in found if isinstance(path, str)]


@contextmanager
def _apart(place: str) -> Iterator[None]:
    """Lets networks be built and run to be looked at; random numbers go on as if nothing was."""
    with torch.random.fork_rng(devices=[]), torch.device(place):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps timm from telling of weights that a part of a network does not need."""
    logger = logging.getLogger("timm.models._builder")

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(passes)
    try:
        yield
    finally:
        with suppress(ValueError):
            logger.removeFilter(passes)
