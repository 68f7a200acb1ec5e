"""Linear layers with 8- and 4-bit weights on the CPU, on PyTorch's own kernels. Activations keep their type."""

import torch
from torch import Tensor, nn

GROUP = 64  # weights that share a scale and a zero point in 4 bits: 4.5 bits a weight
_ROWS = 16  # the 4-bit kernel takes output features in multiples of this


class Int4Linear(nn.Module):
    """W ≈ (q − 8) · scale + zero in groups of GROUP along the input, q of 4 bits between the group's extremes.

    The packed form depends on the processor and is never written to disk."""

    bits = 4

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        grouped = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
        low, high = grouped.amin(dim=2), grouped.amax(dim=2)
        scale = ((high - low) / 15).clamp_min(1e-8)
        zero = low + 8 * scale
        q = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
        self.scales = torch.stack([scale.T, zero.T], dim=2).to(weight.dtype).contiguous()  # (groups, out, 2)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)
        out = out if self.bias is None else out.add_(self.bias)
        return out.view(*x.shape[:-1], -1)

    @property
    def weight(self) -> Tensor:
        """The weights as the layer computes with them, (out_features, in_features): its answers to the unit vectors."""
        unit = torch.eye(len(self.scales) * GROUP, dtype=self.scales.dtype)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(unit, self.packed, GROUP, self.scales)
        return out.T.contiguous()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        return weight.shape[0] % _ROWS == 0 and weight.shape[1] % GROUP == 0


class Int8Linear(nn.Module):
    """W ≈ q · scale, q of 8 bits, a scale for each output feature."""

    bits = 8

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        scale = (weight.float().abs().amax(dim=1) / 127).clamp_min(1e-8)
        self.q = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale = scale.to(weight.dtype)
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """A dense copy, (out_features, in_features)."""
        return self.q * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.aten._weight_int8pack_mm(rows, self.q, self.scale)
        out = out if self.bias is None else out.add_(self.bias)
        return out.view(*x.shape[:-1], -1)
