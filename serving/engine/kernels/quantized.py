"""Linear layers with 8- and 4-bit weights on the CPU. Activations keep their type."""

import torch
from torch import Tensor, nn

from serving.engine.kernels import native
from serving.engine.kernels.native import PANEL, NativeKernels

GROUP = 64  # weights that share a scale and a zero point in 4 bits: 4.5 bits a weight
_ROWS = 16  # the 4-bit kernels take output features in multiples of this


class Int4Linear(nn.Module):
    """W ≈ (q − 8) · scale + zero in groups of GROUP along the input, q of 4 bits between the group's extremes.

    On our own kernel in bfloat16 where the processor can, else on PyTorch's. The packed forms depend on the processor
    and are never written to disk."""

    bits = 4

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.width, self.size = weight.shape
        self.bias = bias
        grouped = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
        low, high = grouped.amin(dim=2), grouped.amax(dim=2)
        scale = ((high - low) / 15).clamp_min(1e-8)
        zero = low + 8 * scale
        q = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.native = _own_kernel(weight)
        if self.native:
            self.packed, self.scales = _pack(q), _pack_scales(scale, zero).to(weight.dtype)
        else:
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
            self.scales = torch.stack([scale.T, zero.T], dim=2).to(weight.dtype).contiguous()  # (groups, out, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x.reshape(-1, self.size), self.bias).view(*x.shape[:-1], self.width)

    def _multiply(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """rows (rows, in_features) → (rows, out_features)."""
        if self.native:
            return self.native.multiply_4bit(rows.contiguous(), self.packed, self.scales, bias, self.width)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales)
        return out if bias is None else out.add_(bias)

    @property
    def weight(self) -> Tensor:
        """The weights as the layer computes with them, (out_features, in_features): its answers to the unit vectors."""
        return self._multiply(torch.eye(self.size, dtype=self.scales.dtype), None).T.contiguous()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        return weight.shape[0] % _ROWS == 0 and weight.shape[1] % GROUP == 0


class Int8Linear(nn.Module):
    """W ≈ q · scale, q of 8 bits, a scale for each output feature.

    Where our kernel for 4 bits can be had it serves here as well: q = 16 · high + low, both of 4 bits, is a product
    with twice the inputs. Else PyTorch's kernel does."""

    bits = 8

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.width, self.size = weight.shape
        self.bias = bias
        scale = (weight.float().abs().amax(dim=1) / 127).clamp_min(1e-8)
        q = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale = scale.to(weight.dtype)
        self.native = _own_kernel(weight) if Int4Linear.fits(weight) else None
        if self.native:
            self.packed, self.scales = _pack_halves(q.to(torch.int32), self.scale)
        else:
            self.q = q

    @property
    def weight(self) -> Tensor:
        """The weights as the layer computes with them, (out_features, in_features)."""
        if self.native:
            return self._multiply(torch.eye(self.size, dtype=self.scale.dtype), None).T.contiguous()
        return self.q * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x.reshape(-1, self.size), self.bias).view(*x.shape[:-1], self.width)

    def _multiply(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """rows (rows, in_features) → (rows, out_features)."""
        if self.native:
            twice = torch.cat([rows, rows], dim=1)
            return self.native.multiply_4bit(twice, self.packed, self.scales, bias, self.width)
        out: Tensor = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), self.q, self.scale)
        return out if bias is None else out.add_(bias)


def _own_kernel(weight: Tensor) -> NativeKernels | None:
    kernels = native.load()
    return kernels if kernels and kernels.most_rows and weight.dtype == torch.bfloat16 else None


def _pack_halves(q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """q (out, in) of 8 bits as twice the inputs of 4: high halves, then low ones."""
    high, low = q >> 4, q & 15  # -8 to 7, and 0 to 15, which is stored 8 less
    groups = q.shape[1] // GROUP
    scales = torch.cat([16 * scale[:, None].expand(-1, groups), scale[:, None].expand(-1, groups)], dim=1)
    zeros = torch.cat([scale.new_zeros(len(q), groups), 8 * scale[:, None].expand(-1, groups)], dim=1)
    return _pack(torch.cat([high + 8, low], dim=1)), _pack_scales(scales, zeros)


def _pack(q: Tensor) -> Tensor:
    """q (out, in) of 0 to 15 → (panels, in / 2, 16, 2) int16, in each four values that lie 16 output features apart."""
    padding = -len(q) % PANEL
    q = torch.cat([q, q.new_full((padding, q.shape[1]), 8)])
    q = q.view(len(q) // PANEL, 4, 16, -1, 2)
    four = q[:, 0] | q[:, 1] << 4 | q[:, 2] << 8 | q[:, 3] << 12
    return four.to(torch.int16).transpose(1, 2).contiguous()


def _pack_scales(scale: Tensor, zero: Tensor) -> Tensor:
    """scale and zero (out, groups) → (panels, groups, 2, PANEL)."""
    both = torch.stack([scale, zero])  # (2, out, groups)
    padding = both.new_zeros(2, -len(scale) % PANEL, scale.shape[1])
    joined = torch.cat([both, padding], dim=1)
    return joined.view(2, -1, PANEL, scale.shape[1]).permute(1, 3, 0, 2).contiguous()
