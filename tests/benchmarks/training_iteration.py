"""Compares one training iteration of ``recontrast`` with a straightforward implementation.

The other side is what one writes from the paper and the description of the official code: plain
PyTorch, a deep copy of the encoder, one pass of both views through bottleneck and decoder, both
output heads on everything, a cosine per scale, and a backward hook that zeroes the gradient of
easy points. Both start from the same weights, see the same batches (normalised by the
same function) and take turns in one process.

    python tests/benchmarks/training_iteration.py [PAIRS]

First the losses of both are compared in float64 on small images: they must agree to 1e-5 in all
iterations. (In float32 they agree at first and drift apart: AdamW turns the last bit of a
vanishing gradient into a full step.) Then the times in float32 at full size are compared: the
median over all pairs of iterations of our time divided by the other's must not be above 1.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from anomtune.models.images.pixels import normalise
from anomtune.models.recontrast import ReContrast, ReContrastHyperparameters
from anomtune.models.training.batches import BatchOrder

SIZE, BATCH, IMAGES, TOTAL = 256, 8, 32, 2000
SMALL_SIZE, COMPARED, TOLERANCE = 64, 10, 1e-5


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
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = down(64, 128), nn.BatchNorm2d(128)
        self.conv2, self.bn2 = down(128, 256), nn.BatchNorm2d(256)
        self.conv3, self.bn3 = down(128, 256), nn.BatchNorm2d(256)
        shortcut = nn.Sequential(nn.Conv2d(768, 512, 1, stride=2, bias=False), nn.BatchNorm2d(512))
        self.layer = nn.Sequential(Block(down(768, 512), 512, shortcut), Block(same(512), 512))
        self.conv4, self.bn4 = nn.Conv2d(1024, 512, 1, bias=False), nn.BatchNorm2d(512)

    def forward(self, maps: list[Tensor]) -> Tensor:
        first = F.relu(self.bn1(self.conv1(maps[0])))
        first = F.relu(self.bn2(self.conv2(first)))
        second = F.relu(self.bn3(self.conv3(maps[1])))
        return self.layer(torch.cat([first, second, maps[2]], 1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for inputs, planes in ((512, 256), (256, 128), (128, 64)):
            shortcut = nn.Sequential(up(inputs, planes), nn.BatchNorm2d(planes))
            self.layers.append(
                nn.Sequential(
                    Block(up(inputs, planes), planes, shortcut), Block(same(planes), planes)
                )
            )
        self.heads_a = nn.ModuleList(nn.Conv2d(c, c, 1) for c in (64, 128, 256))
        self.heads_b = nn.ModuleList(nn.Conv2d(c, c, 1) for c in (64, 128, 256))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            maps.insert(0, x)
        return (
            [head(part) for head, part in zip(self.heads_a, maps, strict=True)],
            [head(part) for head, part in zip(self.heads_b, maps, strict=True)],
        )


def encode(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    x = encoder.maxpool(F.relu(encoder.bn1(encoder.conv1(images))))
    first = encoder.layer1(x)
    second = encoder.layer2(first)
    return [first, second, encoder.layer3(second)]


def mined_loss(targets: list[Tensor], predictions: list[Tensor], alpha: float) -> Tensor:
    loss = torch.zeros(())
    for target, prediction in zip(targets, predictions, strict=True):
        fixed = target.detach()
        with torch.no_grad():
            distance = 1 - F.cosine_similarity(fixed, prediction).unsqueeze(1)
            easy = distance < distance.mean() + alpha * distance.std()
        loss = loss + (1 - F.cosine_similarity(fixed.flatten(1), prediction.flatten(1))).mean()
        prediction.register_hook(lambda gradient, easy=easy: gradient * (~easy).to(gradient))
    return loss


class Straightforward:
    """The other side, with the initial weights and the order of batches of a detector."""

    def __init__(self, detector: ReContrast) -> None:
        self.encoder = resnet18()
        self.bottleneck, self.decoder = Bottleneck(), Decoder()
        network = detector.network
        del self.encoder.layer4, self.encoder.fc
        self.encoder.load_state_dict(network.encoder.state_dict())
        for mine, theirs in (
            (self.bottleneck, network.student.bottleneck),
            (self.decoder, network.student.decoder),
        ):
            # The layers are registered in the same order under other names.
            for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
                a.data.copy_(b.data)
        self.frozen = copy.deepcopy(self.encoder).eval()
        self.optimizer = torch.optim.AdamW(
            [*self.bottleneck.parameters(), *self.decoder.parameters()],
            lr=2e-3,
            betas=(0.9, 0.999),
            weight_decay=1e-5,
        )
        self.encoder_optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-5
        )
        self.order = BatchOrder(BATCH, seed=0)
        self.iteration = 0

    def step(self, images: Tensor) -> float:
        # The same numbers to the last bit, or float64 would compare roundings of the input.
        batch = normalise(images[self.order.draw(len(images))], torch.device("cpu"))
        batch = batch.contiguous().to(next(self.encoder.parameters()).dtype)
        self.encoder.train()
        adapted = encode(self.encoder, batch)
        with torch.no_grad():
            frozen = encode(self.frozen, batch)
        joined = [torch.cat(views) for views in zip(adapted, frozen, strict=True)]
        heads_a, heads_b = self.decoder(self.bottleneck(joined))
        from_adapted = [maps.chunk(2)[0] for maps in heads_a]
        from_frozen = [maps.chunk(2)[1] for maps in heads_b]
        alpha = min(-3 + 4 * self.iteration / (0.1 * TOTAL), 1)
        loss = 0.5 * mined_loss(frozen, from_adapted, alpha)
        loss = loss + 0.5 * mined_loss(adapted, from_frozen, alpha)
        self.optimizer.zero_grad()
        self.encoder_optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.encoder_optimizer.step()
        self.iteration += 1
        return loss.item()


def both_sides(size: int, dtype: torch.dtype) -> tuple[Callable[[], float], Callable[[], float]]:
    """Returns our step and the other's, from the same weights; each returns its loss."""
    coarse = torch.rand(IMAGES, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=size, mode="bilinear").mul(255).to(torch.uint8)
    hyperparameters = ReContrastHyperparameters(
        backbone="resnet18", weights="random", batch_size=BATCH, iterations=TOTAL
    )
    ours = ReContrast(hyperparameters, image_size=size)
    other = Straightforward(ours)
    for network in (ours.network, other.encoder, other.frozen, other.bottleneck, other.decoder):
        network.to(dtype)
    ours.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    return lambda: ours.fit(images, 1)["loss"], lambda: other.step(images)


def compare_losses() -> float:
    """Prints the losses of the first iterations; returns the largest difference."""
    our_step, other_step = both_sides(SMALL_SIZE, torch.float64)
    largest = 0.0
    for iteration in range(COMPARED):
        mine, theirs = our_step(), other_step()
        largest = max(largest, abs(mine - theirs))
        print(f"iteration {iteration}: loss {mine:.9f} and {theirs:.9f}")
    return largest


def compare_times(iterations: int) -> float:
    """Prints the time of every pair of iterations; returns the median ratio."""
    our_step, other_step = both_sides(SIZE, torch.float32)
    steps = {"ours": our_step, "other": other_step}
    ratios = []
    for iteration in range(iterations + 1):
        seconds = {}
        # Whoever comes first finds colder caches: take turns.
        for name in sorted(steps, reverse=bool(iteration % 2)):
            start = time.perf_counter()
            steps[name]()
            seconds[name] = time.perf_counter() - start
        if iteration > 0:  # the first allocates
            ratios.append(seconds["ours"] / seconds["other"])
            print(f"pair {iteration}: {seconds['ours']:.2f} s and {seconds['other']:.2f} s")
    return statistics.median(ratios)


def main(iterations: int) -> int:
    """Returns the exit code: 0 if ours is equal and not slower."""
    difference = compare_losses()
    print(f"largest loss difference: {difference:.1e} (allowed: {TOLERANCE:.0e})", flush=True)
    ratio = compare_times(iterations)
    print(f"ratio of times, ours / straightforward: {ratio:.3f} (median of {iterations} pairs)")
    return int(ratio > 1 or difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
