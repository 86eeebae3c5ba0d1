"""Batch norm for encoders that adapt to images with little variety."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PartialNorm(nn.BatchNorm2d):
    """Batch norm that does not amplify channels which hardly vary in a category.

    In training a channel whose batch variance is at most ``min(threshold, pretrained variance)``
    is divided by that floor's root instead; its batch mean is still subtracted, and the running
    variance takes in the floor. In eval mode it is ordinary batch norm.

    Source: ReContrast, appendix E, and the official "stable" scripts (eps 1e-6).

    Args:
        norm: The pretrained layer to replace.
        threshold: Highest floor.
    """

    floor: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, threshold: float) -> None:
        super().__init__(norm.num_features, eps=1e-6, momentum=0.1, device=norm.weight.device)
        self.load_state_dict(norm.state_dict())
        self.register_buffer("floor", self.running_var.clamp_max(threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``(B, C, h, w)``."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            batch_var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
            var = torch.where(batch_var <= self.floor, self.floor, batch_var)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
            scale = self.weight * torch.rsqrt(var + self.eps)
            shift = self.bias - mean * scale
            return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)


def use_partial_norm(network: nn.Module, threshold: float) -> None:
    """Replaces every batch norm of a network by `PartialNorm` with the same statistics."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, PartialNorm(child, threshold))
