"""The compiled CPU kernels, the .cpp files beside this one: built with the system's C++ compiler the first time a
machine needs them, kept in the user's cache directory, called through ctypes. Where there is no compiler `load` returns
None and the PyTorch forms in `cpu` and `reference` do the work."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.engine.kernels.plan import AttentionSpec
from serving.engine.kv_cache import LayerCache

LANES = 16  # every dimension that a kernel walks along is a multiple of this
PANEL = 64  # output features that lie together in packed weights
_HERE = Path(__file__).parent
_SOURCES = [_HERE / name for name in ("native.cpp", "product.cpp", "stack.cpp")]
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
_PREFERRED = ["-mprefer-vector-width=512"]  # GCC on x86 alone understands it
_PARAMETERS: dict[str, list[Any]] = {
    "add_rms_norm": [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_float],
    "norm_and_rotate": [c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int, c_float],
    "silu_and_multiply": [c_void_p, c_void_p, c_int64, c_int],
    "store_kv": [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int64, c_int],
    "attend": [*[c_void_p] * 6, c_int64, c_int64, c_int, c_int, c_int64, c_int, c_int, c_int64, c_float, c_float]
    + [c_void_p],
    "causal_softmax": [c_void_p, c_int64, c_int64, c_int64, c_float],
    "add_lora": [c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64],
}

log = logging.getLogger(__name__)


class NativeKernels:
    """The library, with tensors for arguments. Tensors are float32 or bfloat16, all of one type; see `fits`."""

    def __init__(self, library: ctypes.CDLL):
        self._functions = {
            (name, dtype): self._bind(library, name, dtype)
            for name in _PARAMETERS
            for dtype in (torch.float32, torch.bfloat16)
        }
        library.most_rows.restype = c_int64
        self.most_rows: int = library.most_rows()  # that `multiply_packed` takes: 0 on processors it is not made for
        self._multiply = library.multiply_packed
        self._multiply.argtypes, self._multiply.restype = [*[c_void_p] * 4, *[c_int64] * 3], None
        self._multiply_4bit = library.multiply_4bit_packed
        self._multiply_4bit.argtypes, self._multiply_4bit.restype = [*[c_void_p] * 5, *[c_int64] * 3], None
        self._decode_layers = library.decode_layers
        self._decode_layers.argtypes, self._decode_layers.restype = [c_void_p, c_void_p], None

    @staticmethod
    def _bind(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> Any:
        function = getattr(library, f"{name}_{str(dtype).removeprefix('torch.')}")
        function.argtypes, function.restype = _PARAMETERS[name], None
        return function

    @staticmethod
    def fits(x: Tensor, *dims: int) -> bool:
        """Whether the kernels take x's type and these dimensions."""
        return x.dtype in (torch.float32, torch.bfloat16) and all(dim % LANES == 0 for dim in dims)

    def multiply_packed(self, x: Tensor, packed: int, bias: Tensor | None, width: int) -> Tensor:
        """x (rows, in_features) bfloat16, contiguous → (rows, width), with oneDNN's packed weights at that address."""
        rows, size = x.shape
        out = x.new_empty(rows, width)
        self._multiply(
            out.data_ptr(), x.data_ptr(), packed, bias.data_ptr() if bias is not None else None, rows, size, width
        )
        return out

    def multiply_4bit(self, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, width: int) -> Tensor:
        """x (rows, in_features) bfloat16, contiguous → (rows, width). packed (panels, in_features / 2, 16, 2) int16 and
        scales (panels, groups, 2, 64) bfloat16 as product.cpp says."""
        rows, size = x.shape
        out = x.new_empty(rows, width)
        self._multiply_4bit(
            out.data_ptr(),
            x.data_ptr(),
            packed.data_ptr(),
            scales.data_ptr(),
            bias.data_ptr() if bias is not None else None,
            rows,
            size,
            width,
        )
        return out

    def decode_layers(self, stack: ctypes.Structure, step: ctypes.Structure) -> None:
        """All layers of a decoding step, told by the structs of stack.cpp."""
        self._decode_layers(ctypes.byref(stack), ctypes.byref(step))

    def add_rms_norm(self, x: Tensor, add: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
        """x (rows, dim) += add, in place; returns its norm."""
        out = torch.empty_like(x)
        rows, dim = x.shape
        self._functions["add_rms_norm", x.dtype](
            out.data_ptr(),
            x.data_ptr(),
            add.data_ptr() if add is not None else None,
            weight.data_ptr(),
            rows,
            dim,
            epsilon,
        )
        return out

    def norm_and_rotate(self, x: Tensor, norm: tuple[Tensor, float] | None, cos: Tensor, sin: Tensor) -> None:
        """x (rows, heads, dim) in place, rows at any distance."""
        rows, heads, dim = x.shape
        weight, epsilon = norm or (None, 0.0)
        self._functions["norm_and_rotate", x.dtype](
            x.data_ptr(),
            weight.data_ptr() if weight is not None else None,
            cos.data_ptr(),
            sin.data_ptr(),
            rows,
            x.stride(0),
            heads,
            dim,
            epsilon,
        )

    def silu_and_multiply(self, gate_up: Tensor) -> Tensor:
        rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, dim)
        self._functions["silu_and_multiply", out.dtype](out.data_ptr(), gate_up.data_ptr(), rows, dim)
        return out

    def store_kv(self, kept: Tensor, x: Tensor, slots: Tensor) -> None:
        """kept (heads, tokens, dim) at `slots` ← x (rows, heads, dim), rows at any distance."""
        heads, tokens, dim = kept.shape
        self._functions["store_kv", x.dtype](
            kept.data_ptr(), x.data_ptr(), slots.data_ptr(), x.shape[0], x.stride(0), heads, tokens, dim
        )

    def attend(
        self, out: Tensor, query: Tensor, cache: LayerCache, slots: Tensor, lengths: Tensor, spec: AttentionSpec
    ) -> None:
        """One query a row: query (rows, heads, key_dim) → out (rows, heads, value_dim). slots (rows,) holds addresses
        of each row's cache positions, lengths (rows,) how many there are."""
        sinks = spec.sinks.float().contiguous() if spec.sinks is not None else None
        rows, heads, key_dim = query.shape
        kv_heads, tokens, value_dim = cache.values.shape
        self._functions["attend", query.dtype](
            out.data_ptr(),
            query.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            slots.data_ptr(),
            lengths.data_ptr(),
            rows,
            query.stride(0),
            heads,
            kv_heads,
            tokens,
            key_dim,
            value_dim,
            spec.window or 0,
            spec.scale,
            spec.softcap or 0.0,
            sinks.data_ptr() if sinks is not None else None,
        )

    def causal_softmax(self, scores: Tensor, scale: float) -> None:
        """scores (matrices, count, length), in place; the last query sees all columns."""
        self._functions["causal_softmax", scores.dtype](scores.data_ptr(), *scores.shape, scale)

    def add_lora(self, out: Tensor, x: Tensor, entries: Tensor, members: Tensor) -> None:
        """out (rows, out_features) += every entry's strength · (x Aᵀ) B. entries (count, 4) and members (count, 5) are
        int64 tables in the layout of native.cpp's structs."""
        self._functions["add_lora", x.dtype](
            out.data_ptr(),
            x.data_ptr(),
            x.shape[1],
            out.stride(0),
            entries.data_ptr(),
            len(entries),
            members.data_ptr(),
            len(members),
        )


@cache
def load() -> NativeKernels | None:
    """The kernels, compiled now if this machine has not compiled them before (a second or two). None, with a line in
    the log, where that fails."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if compiler is None:
        log.warning("no C++ compiler: decoding uses PyTorch's own operations, at about a third of the speed")
        return None
    try:
        return NativeKernels(ctypes.CDLL(str(_compiled(compiler))))
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        log.warning("the CPU kernels cannot be built, decoding uses PyTorch's own operations: %s", said)
        return None


def _compiled(compiler: str) -> Path:
    """The library's file for this source, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    identity = "\0".join(
        [*(source.read_text() for source in (_HERE / "native.h", *_SOURCES)), version, *_FLAGS, _processor()]
    )
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bianlian"
    path = directory / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            built = Path(scratch) / path.name
            preferred = _PREFERRED if "gcc" in version.lower() or "g++" in version.lower() else []
            command = [compiler, *_FLAGS, *preferred, "-o", str(built), *map(str, _SOURCES)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            built.replace(path)  # by rename: another process may be building the same
    return path


def _processor() -> str:
    """What -march=native means here: a cache directory may be shared by different machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
