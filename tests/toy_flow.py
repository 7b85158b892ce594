"""A flow small enough to train in a test: one tanh coupling over a scaled normal, with buffers, context and sampling."""

import torch
from torch import nn


class ToyFlow(nn.Module):
    def __init__(self, features=2, context_features=0, hidden=16, seed=0, dtype=torch.float32):
        super().__init__()
        self.features, self.context_features = features, context_features
        self.split = features // 2
        generator = torch.Generator().manual_seed(seed)

        def random(*shape):
            return nn.Parameter(0.3 * torch.randn(*shape, generator=generator).to(dtype))

        self.w1 = random(self.split + context_features, hidden)
        self.b1 = random(hidden)
        self.w2 = random(hidden, 2 * (features - self.split))
        self.log_scale = nn.Parameter(torch.zeros(features, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(features, dtype=dtype))
        self.register_buffer("location", torch.zeros(features, dtype=dtype))

    def log_prob(self, x, context=None):
        x = (x - self.location - self.shift) * torch.exp(-self.log_scale)
        kept, moved = x[:, : self.split], x[:, self.split :]
        given = kept if context is None else torch.cat([kept, context], dim=1)
        shift, scale = (torch.tanh(given @ self.w1 + self.b1) @ self.w2).chunk(2, dim=1)
        scale = torch.tanh(scale) * 2
        z = torch.cat([kept, (moved - shift) * torch.exp(-scale)], dim=1)
        return -(z.square() / 2 + 0.9189385).sum(1) - self.log_scale.sum() - scale.sum(1)
