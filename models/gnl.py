"""GNL: anomaly detection under distribution shift (Cao, Zhu and Pang, ICCV 2023).

RD4AD's network, trained so that an image and its views of another style (AugMix, grey) have the
same embedding and the same lowest features decoded from it (distribution-invariant normality
learning); at test time the style of an image's features is drawn to that of a normal training
image (feature distribution matching, FDM). Where supplement and official code differ, defaults
follow the code: WideResNet50-2, view losses summed over the views, FDM after stages 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torchvision.transforms.functional import rgb_to_grayscale

from anomtune.models.hyperparameters import Protocol, Setting
from anomtune.models.images.augmix import AugMix, OperationList
from anomtune.models.images.pixels import upload
from anomtune.models.layers.backbones import check_stages
from anomtune.models.layers.feature_matching import MatchedEncoder, Matching
from anomtune.models.layers.frozen import targets
from anomtune.models.layers.losses import Loss, alpha_schedule, feature_loss, global_loss
from anomtune.models.layers.maps import Pair
from anomtune.models.ranges import Choice
from anomtune.models.rd4ad import ReverseDistillation
from anomtune.models.scoring import Scoring
from anomtune.models.training.distillation import DistillationDetector, DistillationHyperparameters
from anomtune.models.training.report import Report

Stages = Literal["1", "2", "3", "1,2", "1,3", "2,3", "1,2,3"]

_WEIGHTS = (0.0, 0.01, 0.05, 0.1, 0.2)


class GNLScoring(Scoring):
    """What can be set of `GNL` after training."""

    forward = frozenset({"fdm", "fdm_weight", "fdm_stages"})

    fdm: Annotated[Literal[Matching, "none"], Choice(choices=("efdm", "mixstyle", "none"))] = Field(
        default="efdm",
        description="How features are matched to the reference at test time: exactly by rank, by "
        "mean and deviation (mixstyle), the mean of both, or not. Source: supplement, eq. 1; "
        "choices from the official code.",
    )
    fdm_weight: Annotated[float, Choice(choices=(0.25, 0.5, 1.0))] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the reference in matched features, alpha in eq. 1. "
        "Source: official code; choices inferred.",
    )
    fdm_stages: Annotated[Stages, Choice(choices=("1", "1,2", "1,2,3"))] = Field(
        default="1,2",
        description="Stages of the encoder after which features are matched. "
        "Source: official code; choices inferred.",
    )

    @property
    def matches(self) -> bool:
        """Whether features are matched at all."""
        return self.fdm != "none" and self.fdm_weight > 0

    def acting(self, scales: tuple[str, ...]) -> dict[str, Any]:
        """Returns the fields that take part; see `Scoring.acting`."""
        values = super().acting(scales)
        if not self.matches:
            values = {name: value for name, value in values.items() if name not in self.forward}
        return values


class GNLHyperparameters(DistillationHyperparameters):
    """What can be set of `GNL`."""

    protocol: ClassVar[Protocol] = Protocol(
        "supplement: image AUROC of the training images' domain and of shifted ones; no seed is "
        "told.",
        inferred=True,
    )

    settings: ClassVar[tuple[Setting, ...]] = (
        *DistillationHyperparameters.settings,
        Setting("mnist", {"backbone": "resnet18", "epochs": 5}, "GNL, supplement, section 2.1."),
        Setting(
            "mnist",
            {"resolution": 32, "pixels": "unit", "scoring": {"sigma": 32.0}},
            "RD4AD, official code, whose network it trains; GNL's script for MNIST is not public, "
            "and the 28 pixels of its supplement do not fit the network.",
            inferred=True,
        ),
        Setting(
            "fashion_mnist",
            {
                **{"backbone": "resnet18", "epochs": 5},
                **{"resolution": 32, "pixels": "unit", "scoring": {"sigma": 32.0}},
            },
            "as for MNIST.",
            inferred=True,
        ),
        Setting("pacs", {"augmix": "pacs"}, "GNL, official code."),
    )

    epochs: int | None = Field(
        default=20,
        ge=1,
        description="Passes over the training images. Not searched: the rungs of a trial show "
        "what fewer give. Source: supplement (MVTec, PACS, CIFAR-10; MNIST 5).",
    )
    lr: float = Field(
        default=5e-3, gt=0, description="Learning rate of Adam. Source: supplement, section 2.1."
    )
    loss: Loss = Field(
        default="global",
        description="How the original's features are compared with their reconstruction; views "
        "are always compared as whole maps. Source: official code.",
    )
    weight_ori: float = Field(
        default=0.9,
        ge=0,
        description="Weight of the reconstruction of the original. Source: official code.",
    )
    weight_abs: Annotated[float, Choice(choices=_WEIGHTS)] = Field(
        default=0.05,
        ge=0,
        description="Weight of the distance of the embeddings of original and views, summed over "
        "the two views. Source: official code; range inferred.",
    )
    weight_lowf: Annotated[float, Choice(choices=_WEIGHTS)] = Field(
        default=0.05,
        ge=0,
        description="Weight of the distance of the lowest features decoded from original and "
        "views, summed over the two views; 0 leaves out decoding the views. "
        "Source: official code; range inferred.",
    )
    augmix: OperationList = Field(
        default="mvtec",
        description="AugMix operations: autocontrast, equalize, posterize, solarize, colour and "
        "sharpness (mvtec), with contrast and brightness as well (pacs). Source: official code.",
    )
    scoring: GNLScoring = Field(
        default=GNLScoring(sigma=4.0),
        description="How evidence becomes maps and scores, and how features are matched at test "
        "time. Source: official code.",
    )
    reference: Literal["first", "random"] = Field(
        default="first",
        description="Which training image the features are matched to: the first by file name, or "
        "any. Source: official code (first); random from the supplement, section 2.2.",
    )


class GNL(DistillationDetector[GNLHyperparameters]):
    """The detector of one category; see `Detector` for the arguments.

    The reference of ``first`` is the training image whose file name comes first, as in the
    official code (`Detector.first_image`). Before the first `fit` there is no reference, and
    nothing is matched.
    """

    network: ReverseDistillation
    extra_state = ("reference",)

    def set_up(self) -> None:
        """Prepares the views, and room for the reference; see `Detector.set_up`."""
        super().set_up()
        hyperparameters = self.hyperparameters
        self._augmix = AugMix(hyperparameters.augmix, self.generator)
        self._has_views = hyperparameters.weight_abs > 0 or hyperparameters.weight_lowf > 0
        #: uint8 ``(1, 3, S, S)``.
        self.reference: Tensor | None = None
        #: The encoder with features matched, and how.
        self._matched: tuple[MatchedEncoder, tuple[Any, ...]] | None = None

    @classmethod
    def prepare(cls, hyperparameters: GNLHyperparameters) -> None:
        """Makes sure that weights can be had and features be matched; see `Detector.prepare`."""
        super().prepare(hyperparameters)
        if hyperparameters.scoring.matches:
            check_stages(hyperparameters.backbone)

    def build(self) -> ReverseDistillation:
        """Returns RD4AD's network; see `Detector.build`."""
        hp = self.hyperparameters
        return ReverseDistillation(hp.backbone, hp.weights, self.input_size)

    def build_optimizers(self) -> list[Optimizer]:
        """Returns the student's Adam; see `GradientDetector.build_optimizers`."""
        return [self.network.student_optimizer(self.hyperparameters.lr)]

    def fit(self, images: Tensor, iterations: int) -> Report:
        """Trains on, and chooses the reference the first time; see `GradientDetector.fit`."""
        self.check_training_images(images)
        if self.reference is None:
            index = self.first_image
            if self.hyperparameters.reference == "random":
                generator = torch.Generator().manual_seed(self.seed)
                index = int(torch.randint(len(images), (), generator=generator))
            self.reference = images[index : index + 1].to(self.device, copy=True).contiguous()
        return super().fit(images, iterations)

    def batch(self, images: Tensor, rows: Tensor) -> Tensor:
        """Returns original, AugMix view and grey view one after another, ``(3 B, 3, S, S)``."""
        pixels = upload(images[rows], self.device)
        original = self.inputs(pixels)
        if not self._has_views:
            return original
        mixed = self.inputs(self._augmix(pixels))
        # The grey view is made of what the network sees, as in the official code.
        grey = rgb_to_grayscale(original, num_output_channels=3)
        views = torch.cat([original, mixed, grey])
        return views.contiguous(memory_format=torch.channels_last)

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        """Returns the loss of the views of a batch; see `GradientDetector.loss`."""
        hp, student = self.hyperparameters, self.network.student
        # In eval mode no image sees another, so that all views can pass together. The student
        # gets them one by one: its batch norm must not see their mixture (official code).
        features = targets(self.network.encoder, images)
        n_views = 3 if self._has_views else 1
        original, *views = (
            list(maps) for maps in zip(*(part.chunk(n_views) for part in features), strict=True)
        )
        embedding = student.bottleneck(original)
        decoded = student.decoder(embedding)[0]
        pairs = list(zip(original, decoded, strict=True))
        # With hard-normal mining, ReContrast's schedule.
        alpha = alpha_schedule(iteration, total)
        loss = hp.weight_ori * feature_loss(hp.loss, pairs, alpha=alpha)
        for view in views:
            view_embedding = student.bottleneck(view)
            loss = loss + hp.weight_abs * global_loss([(embedding, view_embedding)])
            if hp.weight_lowf > 0:
                lowest = student.decoder(view_embedding)[0][0]
                loss = loss + hp.weight_lowf * global_loss([(decoded[0], lowest)])
        return loss

    def pairs(self, images: Tensor) -> Sequence[Pair]:
        """Returns pairs of features that are matched to the reference; see the base class."""
        how = self.hyperparameters.scoring
        if how.fdm == "none" or not how.matches or self.reference is None:
            return super().pairs(images)
        wanted = (how.fdm, how.fdm_weight, how.fdm_stages)
        if self._matched is None or self._matched[1] != wanted:
            encoder = MatchedEncoder(
                self.network.encoder,
                self.inputs(self.reference),
                how.fdm,
                how.fdm_weight,
                [int(stage) for stage in how.fdm_stages.split(",")],
            )
            self._matched = encoder, wanted
        targets = self._matched[0](images)
        return list(zip(targets, self.network.student(targets)[0], strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state; see `Detector.load_state_dict`."""
        super().load_state_dict(state)
        self._matched = None
