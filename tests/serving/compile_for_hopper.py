"""Compiles every Triton kernel for an H200, which needs no GPU, and prints how each reads memory. A program of its own:
the kernels must be defined without the interpreter.

The interpreter knows no types of registers or shared memory and no alignment; this is what finds mistakes in those."""

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from serving.engine.kernels import triton_attention, triton_blocks, triton_lora

HOPPER = GPUTarget("cuda", 90, 32)
LORA = {"ADAPTERS": 4, "MEMBERS": 3, "RANK": 64, "BLOCK_RANK": 16}
BLOCK = {"BLOCK_OUT": 128, "ALIGNED": 16}
HEADS = {"KEY_DIM": 128, "BLOCK_KEY": 128, "VALUE_DIM": 128, "BLOCK_VALUE": 128}

# Kernel; types of its runtime arguments in order ("x": pointer to the model's type, "!": a multiple of 16); constants.
KERNELS: list[tuple[Any, str, dict[str, Any]]] = [
    (
        triton_lora._shrink_rows,
        "x i32! i32! *fp32 *i64 i32 *i32 *fp32",
        {**LORA, "SPLITS": 8, "BLOCK_IN": 512},
    ),
    (
        triton_lora._expand_rows,
        "x i32! *fp32 *i64 i32 *i32 *i32",
        {**LORA, **BLOCK, "SPLITS": 8, "BLOCK_SPLITS": 8},
    ),
    (
        triton_lora._shrink_tiles,
        "x i32! i32! *fp32 *i64 i32 *i32 *fp32 *i32",
        {**LORA, "TILE_ROWS": 64, "WIDEN": False, "BLOCK_IN": 64},
    ),
    (
        triton_lora._expand_tiles,
        "x i32! *fp32 *i64 i32 *i32 *i32 *i32",
        {**LORA, **BLOCK, "TILE_ROWS": 64, "WIDEN": False},
    ),
    *(
        (
            triton_attention._sum_chunks,
            f"x x x i64! i64! {table} i32! *i32 *fp32 *fp32 fp32 fp32 i32 i32",
            {
                **HEADS,
                "CHUNKS": 160,
                "CHUNK": 256,
                "KV_HEADS": 8,
                "GROUP": 4,
                "BLOCK_GROUP": 16,
                "BLOCK_TOKENS": 64,
                "BLOCK_SIZE": size,
                "WIDEN": False,
            },
        )
        for table, size in (("*i32", 16), ("*i64", 1))
    ),
    *(
        (
            triton_attention._join_chunks,
            "*fp32 *fp32 *i32 x x i32",
            {
                "CHUNKS": 160,
                "CHUNK": 256,
                "HEADS": 32,
                "VALUE_DIM": 128,
                "BLOCK_VALUE": 128,
                "BLOCK_CHUNKS": 16,
                "HAS_SINKS": sinks,
            },
        )
        for sinks in (True, False)
    ),
    *(
        (triton_blocks._add_rms_norm, "x x x x x fp32", {"WIDTH": 4096, "BLOCK": 4096, "ADDS": adds})
        for adds in (True, False)
    ),
    *(
        (
            triton_blocks._norm_and_rotate,
            "x i32! x fp32 x x i32! x",
            {"HEADS": 40, "DIM": 128, "BLOCK_HALF": 64, "NORMS": norms},
        )
        for norms in (True, False)
    ),
    (triton_blocks._silu_and_multiply, "x x i32!", {"BLOCK": 1024}),
    (
        triton_blocks._store_kv,
        "x x i32! i32! i32! i32! *i64 x x i64! i64!",
        {"KEY_DIM": 128, "VALUE_DIM": 128, "BLOCK": 128},
    ),
]


def compile_kernel(kernel: Any, types: str, constants: dict[str, Any], model_type: str) -> str:
    """PTX for Hopper."""
    given = iter(types.split())
    signature, aligned = {}, {}
    for place, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = next(given).replace("x", f"*{model_type}")
        signature[name] = kind.rstrip("!")
        if kind.endswith("!") or kind.startswith("*"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    ptx: str = triton.compile(source, target=HOPPER).asm["ptx"]
    return ptx


if __name__ == "__main__":
    for kernel, types, constants in KERNELS:
        for model_type in ("bf16", "fp32"):
            ptx = compile_kernel(kernel, types, constants, model_type)
            loads = re.findall(r"(?:ld\.global|cp\.async\.c[ga]\.shared\.global)[.\w]*", ptx)
            narrow = sum(load.endswith(("b16", "b8")) and ".v" not in load for load in loads)
            print(kernel.__name__, model_type, f"{len(loads)} loads, {narrow} of two bytes or fewer")
