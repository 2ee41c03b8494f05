"""Sines and cosines of the offset."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.positions import Positions

from .base import IntraEncoding


class Sinusoidal(IntraEncoding):
    """Sinusoids of the offset (Vaswani et al. 2017, arXiv:1706.03762, section 3.5) times one learned scale.

    Channel `c` holds `sin(offset / 10000^(2c/D))` and channel `D/2 + c` the cosine. The scale starts at the
    standard deviation of the token embeddings, so that neither drowns the other. Offsets longer than any in
    training get the waves of the longest, as those of a table do, though a formula has some for them.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.tensor([config.initializer_range]))

    def forward(self, positions: Positions, dtype: torch.dtype) -> Tensor:
        width = self.config.hidden_size
        offset = self.clamp(positions.offset).float()
        channels = torch.arange(0, width, 2, dtype=torch.float32, device=offset.device)
        angles = offset[..., None] / 10000.0 ** (channels / width)
        # An odd width has one sine more than cosines.
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)[..., :width]
        return (self.scale.float() * waves).to(dtype)

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        nn.init.constant_(self.scale, std)
