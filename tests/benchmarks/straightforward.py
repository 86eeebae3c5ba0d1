"""RD4AD and ReContrast as one writes them from the papers and the description of their code.

Plain PyTorch in float32, no line shared with anomtune: bottleneck and decoder of residual blocks, a
deep copy of the encoder as ReContrast's frozen view, both output heads on everything, a cosine
per scale, a backward hook that zeroes the gradient of easy points. `training_iteration.py` shows
that it computes the same, `user_stack.py` trains with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18


class Block(nn.Module):
    """Basic residual block; ``first`` is its first convolution."""

    def __init__(self, first: nn.Module, planes: int, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = first, nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


def down(inputs: int, planes: int) -> nn.Module:
    return nn.Conv2d(inputs, planes, 3, stride=2, padding=1, bias=False)


def up(inputs: int, planes: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, planes, 2, stride=2, bias=False)


def same(planes: int) -> nn.Module:
    return nn.Conv2d(planes, planes, 3, padding=1, bias=False)


class Bottleneck(nn.Module):
    """Brings three maps to one size, joins and compresses them."""

    def __init__(self, channels: Sequence[int], *, unused_layer: bool) -> None:
        super().__init__()
        a, b, c = channels
        self.conv1, self.bn1 = down(a, b), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = down(b, c), nn.BatchNorm2d(c)
        self.conv3, self.bn3 = down(b, c), nn.BatchNorm2d(c)
        shortcut = nn.Sequential(
            nn.Conv2d(3 * c, 2 * c, 1, stride=2, bias=False), nn.BatchNorm2d(2 * c)
        )
        self.layer = nn.Sequential(
            Block(down(3 * c, 2 * c), 2 * c, shortcut), Block(same(2 * c), 2 * c)
        )
        if unused_layer:
            self.conv4, self.bn4 = nn.Conv2d(4 * c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c)

    def forward(self, maps: list[Tensor]) -> Tensor:
        first = F.relu(self.bn1(self.conv1(maps[0])))
        first = F.relu(self.bn2(self.conv2(first)))
        second = F.relu(self.bn3(self.conv3(maps[1])))
        return self.layer(torch.cat([first, second, maps[2]], 1))


class Decoder(nn.Module):
    """The encoder upside down, with so many sets of output heads; without any, the plain maps."""

    def __init__(self, channels: Sequence[int], heads: int) -> None:
        super().__init__()
        a, b, c = channels
        self.layers = nn.ModuleList()
        for inputs, planes in ((2 * c, c), (c, b), (b, a)):
            shortcut = nn.Sequential(up(inputs, planes), nn.BatchNorm2d(planes))
            self.layers.append(
                nn.Sequential(
                    Block(up(inputs, planes), planes, shortcut), Block(same(planes), planes)
                )
            )
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(planes, planes, 1) for planes in channels) for _ in range(heads)
        )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        maps: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            maps.insert(0, x)
        if not self.heads:
            return [maps]
        return [
            [head(part) for head, part in zip(heads, maps, strict=True)] for heads in self.heads
        ]


class ResNet18(nn.Module):
    """Maps of layers 1 to 3."""

    channels, signed = (64, 128, 256), False

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18()
        del self.network.layer4, self.network.fc

    def forward(self, images: Tensor) -> list[Tensor]:
        net = self.network
        first = net.layer1(net.maxpool(F.relu(net.bn1(net.conv1(images)))))
        second = net.layer2(first)
        return [first, second, net.layer3(second)]


class MobileNetV2(nn.Module):
    """Maps of strides 4, 8 and 16."""

    channels, signed = (24, 32, 96), True

    def __init__(self) -> None:
        super().__init__()
        self.network = mobilenet_v2()
        self.network.features = self.network.features[:14]
        del self.network.classifier

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.network.features
        first = features[:4](images)
        second = features[4:7](first)
        return [first, second, features[7:](second)]


ENCODERS = {"resnet18": ResNet18, "mobilenet_v2": MobileNetV2}


def distance(target: Tensor, prediction: Tensor) -> Tensor:
    """Returns ``1 - cos`` of whole maps, averaged over the batch."""
    return (1 - F.cosine_similarity(target.flatten(1), prediction.flatten(1))).mean()


def mined_loss(targets: list[Tensor], predictions: list[Tensor], alpha: float) -> Tensor:
    """Returns the loss in which easy points of the predictions do not learn."""
    loss = torch.zeros(())
    for target, prediction in zip(targets, predictions, strict=True):
        fixed = target.detach()
        with torch.no_grad():
            points = 1 - F.cosine_similarity(fixed, prediction).unsqueeze(1)
            easy = points < points.mean() + alpha * points.std()
        loss = loss + distance(fixed, prediction)
        prediction.register_hook(lambda gradient, easy=easy: gradient * (~easy).to(gradient))
    return loss


class RD4AD(nn.Module):
    """A frozen encoder and its student."""

    def __init__(self, backbone: str, lr: float = 5e-3) -> None:
        super().__init__()
        self.encoder = ENCODERS[backbone]().requires_grad_(False).eval()
        channels, signed = self.encoder.channels, self.encoder.signed
        self.bottleneck = Bottleneck(channels, unused_layer=not signed)
        self.decoder = Decoder(channels, heads=int(signed))
        self.lr = lr

    def prepare(self) -> None:
        """To be called when the encoder has its weights."""
        learning = [*self.decoder.parameters(), *self.bottleneck.parameters()]
        self.optimizers = [torch.optim.Adam(learning, lr=self.lr, betas=(0.5, 0.999))]

    def train(self, mode: bool = True) -> RD4AD:
        super().train(mode)
        self.encoder.eval()
        return self

    def pairs(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            targets = self.encoder(images)
        return list(zip(targets, self.decoder(self.bottleneck(targets))[0], strict=True))

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        return torch.stack([distance(*pair) for pair in self.pairs(images)]).sum()


class ReContrast(nn.Module):
    """An encoder that adapts, its frozen copy, and the student of both."""

    def __init__(
        self,
        backbone: str,
        decoder_lr: float = 2e-3,
        encoder_lr: float = 1e-5,
        alpha_final: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = ENCODERS[backbone]()
        channels, signed = self.encoder.channels, self.encoder.signed
        self.bottleneck = Bottleneck(channels, unused_layer=not signed)
        self.decoder = Decoder(channels, heads=2)
        self.lr = decoder_lr, encoder_lr
        self.alpha_final = alpha_final

    def prepare(self) -> None:
        """To be called when the encoder has its weights: its frozen view is copied from it."""
        self.frozen = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        student = [*self.decoder.parameters(), *self.bottleneck.parameters()]
        self.optimizers = [
            torch.optim.AdamW(learning, lr=lr, betas=(0.9, 0.999), weight_decay=1e-5)
            for learning, lr in zip((student, self.encoder.parameters()), self.lr, strict=True)
        ]

    def train(self, mode: bool = True) -> ReContrast:
        super().train(mode)
        self.frozen.eval()
        return self

    def pairs(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        adapted = self.encoder(images)
        with torch.no_grad():
            frozen = self.frozen(images)
        joined = [torch.cat(views) for views in zip(adapted, frozen, strict=True)]
        heads_a, heads_b = self.decoder(self.bottleneck(joined))
        from_adapted = [maps.chunk(2)[0] for maps in heads_a]
        from_frozen = [maps.chunk(2)[1] for maps in heads_b]
        return [
            *zip(frozen, from_adapted, strict=True),
            *zip(adapted, from_frozen, strict=True),
        ]

    def loss(self, images: Tensor, iteration: int, total: int) -> Tensor:
        pairs = self.pairs(images)
        final = self.alpha_final
        alpha = min(-3 + (final + 3) * iteration / (0.1 * total), final)
        loss = 0.5 * mined_loss(*map(list, zip(*pairs[:3], strict=True)), alpha)
        return loss + 0.5 * mined_loss(*map(list, zip(*pairs[3:], strict=True)), alpha)


METHODS = {"rd4ad": RD4AD, "recontrast": ReContrast}


def step(model: RD4AD | ReContrast, images: Tensor, iteration: int, total: int) -> float:
    """Trains on one batch of normalised images; returns the loss."""
    loss = model.loss(images, iteration, total)
    for optimizer in model.optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in model.optimizers:
        optimizer.step()
    return loss.item()
