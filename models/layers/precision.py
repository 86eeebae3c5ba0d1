"""The precision of networks."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """Returns bfloat16 autocast on GPUs that have it, else a context that changes nothing.

    float16 is not used: it would need loss scaling.
    """
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
