"""A linear layer packed for the processor, for decoding at the speed of memory and for prompts at oneDNN's."""

import torch
from torch import Tensor, nn

from serving.engine.kernels import native
from serving.engine.kernels.native import NativeKernels

# The layout hint of the reordering: any number of rows is correct, and this one was the fastest for 1 to 1,024.
_EXPECTED_ROWS = 128
# Two orders of the same sum may differ by this much of its length, in bfloat16.
_ROUNDING = 2**-7


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's own order: a product with few rows then reads memory about twice as
    fast as F.linear, and our own kernel, which knows that order, as fast as memory allows. No gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.width, self.size = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        self.bias = bias
        self.native = self._own_kernel()
        self.address: int = torch.ops.mkldnn.data_ptr(self.packed) if self.native else 0

    @property
    def weight(self) -> Tensor:
        """A dense copy, (out_features, in_features)."""
        dense: Tensor = self.packed.to_dense()
        return dense

    def forward(self, x: Tensor) -> Tensor:
        if self.native is not None and x.numel() <= self.native.most_rows * self.size:
            rows = x.reshape(-1, self.size).contiguous()
            return self.native.multiply_packed(rows, self.address, self.bias, self.width).view(
                *x.shape[:-1], self.width
            )
        return self._onednn(x)

    def _onednn(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    def _own_kernel(self) -> NativeKernels | None:
        """The kernels, if theirs reads this weight as oneDNN does: the order is oneDNN's business, so it is asked."""
        kernels = native.load()
        if self.packed.dtype != torch.bfloat16 or not kernels or not kernels.most_rows or self.width % native.LANES:
            return None
        panels = -(-self.width // native.PANEL) * native.PANEL
        if torch.ops.mkldnn._nbytes(self.packed) != panels * self.size * self.packed.element_size():
            return None
        x = torch.randn(1, self.size, generator=torch.Generator().manual_seed(0)).to(self.packed.dtype)
        ours = kernels.multiply_packed(x, torch.ops.mkldnn.data_ptr(self.packed), self.bias, self.width)
        theirs = self._onednn(x)
        return kernels if (ours - theirs).float().norm() <= _ROUNDING * theirs.float().norm() else None
