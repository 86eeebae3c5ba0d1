"""Batch norm for encoders that adapt to images with little variety."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PartialNorm(nn.BatchNorm2d):
    """Batch norm that does not amplify channels which hardly vary in a category.

    In training a channel whose batch variance is small is divided by the root of another variance;
    its batch mean is still subtracted, and the running variance takes in that other one. In eval
    mode it is ordinary batch norm.

    Small is, and its place takes: what is at most ``min(threshold, pretrained variance)``, which
    takes its place (official "stable" scripts, with eps 1e-6); or, with ``pretrained``, what is at
    most ``threshold``, and the pretrained variance, however large, takes its place (ReContrast,
    appendix E). Batch variances are compared and averaged unbiased, as in the scripts.

    Args:
        norm: The pretrained layer to replace.
        threshold: Where small variances end.
        pretrained: Whether small variances give way to the pretrained one.
    """

    limit: Tensor
    substitute: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, threshold: float, *, pretrained: bool = False) -> None:
        super().__init__(norm.num_features, eps=1e-6, momentum=0.1, device=norm.weight.device)
        self.load_state_dict(norm.state_dict())
        lowered = self.running_var.clamp_max(threshold)
        limit = torch.full_like(lowered, threshold) if pretrained else lowered
        substitute = self.running_var if pretrained else lowered
        self.register_buffer("limit", limit)
        self.register_buffer("substitute", substitute.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``(B, C, h, w)``."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            batch_var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
            count = wide.numel() // wide.shape[1]
            with torch.no_grad():
                unbiased = batch_var * (count / max(1, count - 1))
                small = unbiased <= self.limit
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(torch.where(small, self.substitute, unbiased), 0.1)
            var = torch.where(small, self.substitute, batch_var)
            scale = self.weight * torch.rsqrt(var + self.eps)
            shift = self.bias - mean * scale
            return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)


def use_partial_norm(network: nn.Module, threshold: float, *, pretrained: bool) -> None:
    """Replaces every batch norm of a network by `PartialNorm` with the same statistics."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm: nn.Module = PartialNorm(child, threshold, pretrained=pretrained)
                # timm's has the activation that follows in it.
                if isinstance(act := getattr(child, "act", None), nn.Module):
                    norm = nn.Sequential(norm, act)
                setattr(module, name, norm)
