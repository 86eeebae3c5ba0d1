from __future__ import annotations

import torch

# Small networks: a second thread costs more than it gives, above all on a busy machine.
torch.set_num_threads(1)
