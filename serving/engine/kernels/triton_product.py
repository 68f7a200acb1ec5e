"""The matrix-unit product that the Triton kernels share."""

import triton
import triton.language as tl

# Triton's interpreter, which runs the kernels where there is no GPU, computes garbage in bfloat16.
INTERPRETED: bool = triton.knobs.runtime.interpret


@triton.jit
def matrix_product(a, b, total, WIDEN: tl.constexpr):
    """total + a b, kept in float32. float32 inputs are multiplied as such, never as TF32."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
