"""SPR: anomaly detection using score-based perturbation resilience (Shin et al., ICCV 2023).

A network learns the score of normal images under Gaussian noise, per category and from nothing.
At test time a little noise is added and one step of denoising should give the image back: normal
images are resilient, anomalies are drawn towards the normal ones, and the squared difference is
the map. Training and map follow the official code; the paper's text adds the derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anomtune.models.hyperparameters import Protocol, Resize, TrainedHyperparameters
from anomtune.models.images.pixels import symmetric_range
from anomtune.models.layers.evidence import Evidence
from anomtune.models.layers.maps import scaled_window
from anomtune.models.layers.score_network import ScoreNetwork, perturbation_std
from anomtune.models.ranges import Choice, FloatRange
from anomtune.models.scoring import Scoring
from anomtune.models.training.gradient_detector import GradientDetector

#: Times are drawn from here to 1; at 0 the score is not defined.
_SMALLEST_TIME = 1e-5

_Score = Callable[[Tensor, Tensor], Tensor]


Tensors = tuple[Tensor, ...] | list[Tensor]


class SPRScoring(Scoring):
    """What can be set of `SPR` after training."""

    forward = frozenset({"t_star", "draws"})
    own: ClassVar[Mapping[str, frozenset[str]]] = {"sigma": frozenset({"smoothing"})}

    smoothing: int = Field(
        default=31,
        ge=1,
        description="Side of the mean filter in pixels of a map of 256, odd; 1 = none. Source: "
        "official code.",
    )
    t_star: Annotated[float, Choice(choices=(3e-4, 1e-3, 3e-3))] = Field(
        default=1e-3,
        ge=_SMALLEST_TIME,
        le=1,
        description="Time of the perturbation at test; 1e-3 adds noise of about 4 grey levels. "
        "Source: official code; choices inferred.",
    )
    draws: Annotated[int, Choice(choices=(3, 9))] = Field(
        default=3,
        ge=1,
        description="Perturbations whose maps are averaged. Source: official code; choices "
        "inferred.",
    )

    @field_validator("smoothing")
    @classmethod
    def _check_smoothing(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError(f"the filter has a middle: use {smoothing + 1} or another odd number")
        return smoothing


class SPRHyperparameters(TrainedHyperparameters):
    """What can be set of `SPR`."""

    protocol: ClassVar[Protocol] = Protocol(
        "official code (train.py, mvtec.py); it resizes masks to the nearest pixel.", seeds=(7777,)
    )

    #: The official code resizes so; bilinear images cost 1 to 2 points of pixel AUROC.
    resize: ClassVar[Resize] = "lanczos"

    resolution: Annotated[int, Choice(choices=(128, 192, 256))] = Field(
        default=192,
        ge=16,
        multiple_of=16,
        description="Side of the square images the network sees, in pixels; any multiple of 16. "
        "Source: official code; range inferred.",
    )
    width: int = Field(
        default=64,
        ge=2,
        multiple_of=2,
        description="Channels of the network at full resolution. Source: paper, Table 1.",
    )
    epochs: int | None = Field(
        default=3000,
        ge=1,
        description="Passes over the training images. Not searched: the rungs of a trial show "
        "what fewer give. Source: official code.",
    )
    batch_size: int = Field(
        default=16, ge=1, description="Images per optimiser step. Source: official code."
    )
    lr: float = Field(
        default=1e-4,
        gt=0,
        description="Learning rate of AdamW, divided by 10 after a third and again after two "
        "thirds of the iterations. Source: official code (epochs 1000 and 2000 of 3000).",
    )
    weight_decay: float = Field(
        default=1e-3, ge=0, description="Weight decay of AdamW. Source: official code."
    )
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="Decay per step of the averaged weights, which are the ones tested; at step "
        "n at most (1 + n) / (10 + n), so that the first weights are forgotten in short runs as "
        "well. Source: official code, whose library torch_ema has this warm-up.",
    )
    sigma: Annotated[float, FloatRange(low=10.0, high=50.0, log=True)] = Field(
        default=25.0,
        gt=1,
        description="Base of the noise: at time t it grows as sigma^t. Source: official code; "
        "range inferred.",
    )
    scoring: SPRScoring = Field(
        default=SPRScoring(sigma="own"),
        description="How images are perturbed at test, and how evidence becomes maps and scores: "
        "the mean over squares, and its maximum. Source: official code.",
    )

    def input_size(self, image_size: int) -> int:
        """Returns ``resolution``, for maps of any size."""
        return self.resolution


def score_matching_loss(
    score: _Score, images: Tensor, t: Tensor, noise: Tensor, sigma: float
) -> Tensor:
    """Returns the loss of denoising score matching: the sum of squares per image, then the mean.

    It is ``|std s(x + std z, t) + z|^2`` (official code): 0 for the score of a single image, and
    on average the number of values of an image for a score of 0.

    Args:
        score: Gives the scores of noisy images at their times.
        images: Images ``x``, ``(B, 3, I, I)``.
        t: Times ``(B,)``.
        noise: Standard normal ``z``, shaped as the images.
        sigma: Base of the SDE.
    """
    std = perturbation_std(t, sigma)[:, None, None, None]
    return (std * score(images + std * noise, t) + noise).square().sum((1, 2, 3)).mean()


def restoration_error(
    score: _Score, images: Tensor, t: float, noise: Tensor, sigma: float
) -> Tensor:
    """Returns ``E[x | x + n] - x``: how far one step of denoising leads away from the image.

    By Tweedie's formula it is ``std^2 s(x + n, t) + n`` with ``n = std z`` (official code;
    supplement, equation 5).

    Args:
        score: Gives the scores of noisy images at their times.
        images: Images ``x``, ``(B, 3, I, I)``.
        t: Time of the perturbation.
        noise: Standard normal ``z``, for each image ``(B, 3, I, I)`` or for all ``(3, I, I)``.
        sigma: Base of the SDE.
    """
    times = images.new_full(images.shape[:1], t)
    std = perturbation_std(times, sigma)[:, None, None, None]
    perturbation = std * noise
    return std.square() * score(images + perturbation, times) + perturbation


def mean_filter(maps: Tensor, side: int) -> Tensor:
    """Averages maps ``(N, S, S)`` over squares; outside the map are zeros, and they count.

    Args:
        maps: Any number of maps.
        side: Side of the squares in pixels, odd; may exceed ``S``.
    """
    # One axis after the other: 2 k sums per pixel, not k^2.
    padding = side // 2
    rows = F.avg_pool2d(maps, (side, 1), stride=1, padding=(padding, 0))
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, padding))


def decayed_lr(lr: float, iteration: int, total: int) -> float:
    """Returns the learning rate at an iteration: a tenth after each third of ``total``."""
    return lr * 0.1 ** min(2, 3 * iteration // total)


def warmed_up_decay(decay: float, updates: int) -> float:
    """Returns the decay of the averaged weights at the ``updates``-th update, from 1."""
    return min(decay, (1 + updates) / (10 + updates))


class _Follow:
    """Moves averages towards weights, by what the latest decay leaves."""

    decay = 0.0

    def __call__(self, averages: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        get_ema_multi_avg_fn(self.decay)(averages, weights, updates)  # type: ignore[no-untyped-call]


class SPR(GradientDetector[SPRHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    ``network`` is what learns; maps come from a moving average of its weights.
    """

    network: ScoreNetwork
    extra_state = ("average",)
    training_state = (*GradientDetector.training_state, "network.")

    def set_up(self) -> None:
        """Begins the average, and draws the noise of the tests; see `Detector.set_up`."""
        super().set_up()
        # Not a method of the detector: it would hold on to itself, and stay until it is collected.
        self._follow = _Follow()
        self.average = AveragedModel(self.network, multi_avg_fn=self._follow)
        self.average.update_parameters(self.network)  # The first update only copies.
        self.average.eval().requires_grad_(False)
        # Seeded at each step by the detector's generator.
        self._noise = torch.Generator(self.device)
        self._test_noise = torch.empty(0)

    def build(self) -> ScoreNetwork:
        """Returns the network; see `Detector.build`."""
        return ScoreNetwork(self.hyperparameters.width, self.hyperparameters.sigma)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns AdamW; see `GradientDetector.build_optimizers`."""
        hp = self.hyperparameters
        learning = [p for p in self.network.parameters() if p.requires_grad]
        return [torch.optim.AdamW(learning, hp.lr, weight_decay=hp.weight_decay, fused=True)]

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns images in ``[-1, 1]``; see `GradientDetector.batch`."""
        return symmetric_range(images[rows], self.device)

    def before_step(self, iteration: int, total: int) -> None:
        """Sets the learning rate."""
        lr = decayed_lr(self.hyperparameters.lr, iteration, total)
        self.optimizers[0].param_groups[0]["lr"] = lr

    def after_step(self, iteration: int, total: int) -> None:
        """Lets the average follow the weights."""
        # Counted here: to read torch's own count, the CPU would wait for the GPU.
        self._follow.decay = warmed_up_decay(self.hyperparameters.ema_decay, iteration + 1)
        self.average.update_parameters(self.network)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of images in ``[-1, 1]``; see `GradientDetector.loss`."""
        self._noise.manual_seed(int(torch.randint(2**31, (), generator=self.generator)))
        t = torch.rand(len(images), device=self.device, generator=self._noise)
        t = t * (1 - _SMALLEST_TIME) + _SMALLEST_TIME
        # Drawn in the order in which the images lie in memory: another is several times as slow.
        shape = images.permute(0, 2, 3, 1).shape
        noise = torch.randn(shape, device=self.device, generator=self._noise)
        noise = noise.permute(0, 3, 1, 2)
        return score_matching_loss(self.network, images, t, noise, self.hyperparameters.sigma)

    def evidence(self, images: Tensor) -> Evidence:
        """Returns squared errors of restoration ``(N, I, I)``; see `Detector.evidence`.

        The noise of each draw is the same for every image, seed and batch: maps of two images
        then differ by the images alone.
        """
        how, sigma = self.hyperparameters.scoring, self.hyperparameters.sigma
        batch = symmetric_range(images, self.device)
        total = torch.zeros_like(batch[:, 0])
        for noise in self._noise_of_tests(how.draws):
            error = restoration_error(self.average, batch, how.t_star, noise, sigma)
            total += error.square().mean(1)
        return Evidence((total / how.draws,))

    def own_maps(self, maps: Mapping[str, Tensor], scoring: Scoring, size: int) -> Tensor:
        """Returns the mean of the errors over squares; see `Detector.own_maps`."""
        assert isinstance(scoring, SPRScoring)
        (errors,) = maps.values()
        return mean_filter(self.resized(errors, size), scaled_window(scoring.smoothing, size))

    def _noise_of_tests(self, draws: int) -> Tensor:
        """Returns the noise ``(draws, 3, I, I)``; it is kept: drawing it takes its time."""
        if len(self._test_noise) < draws:
            noise = _test_noise(draws, self.input_size)
            self._test_noise = noise.to(self.device, memory_format=torch.channels_last)
        return self._test_noise[:draws]


def _test_noise(draws: int, size: int) -> Tensor:
    """Returns the standard normal noise ``(draws, 3, size, size)`` of the perturbations."""
    generator = torch.Generator().manual_seed(0)
    # One by one: the first draws are then the same ones however many there are.
    return torch.stack([torch.randn(3, size, size, generator=generator) for _ in range(draws)])
