"""Captured decoding steps. Where there is no GPU the "captured" step is run again as it is: everything but the
capturing itself (buckets, filling up, what a repeated step reads) is the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.base_model import load_base
from adapters.settings import Settings
from serving.engine import kernels as kernels_module
from serving.engine.cuda_graphs import DecodeGraphs, GraphRecorder, Limits, StepInputs, round_up_rows
from serving.engine.engine import Engine
from serving.engine.kernels import CapturingKernels, reference
from serving.engine.lora import LoRALinear, RowSegment
from serving.engine.sequence import Chunk
from serving.engine.sequence import Sequence as Running
from tests.serving.test_engine import assert_nothing_held, drain, random_prompts, request, tokens_of, version_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class PlainKernels:
    """The reference as kernels of captured steps: it reads their description back from the device."""

    rank = 16
    join_linears = staticmethod(reference.join_linears)
    add_rms_norm = staticmethod(reference.add_rms_norm)
    norm_and_rotate = staticmethod(reference.norm_and_rotate)
    silu_and_multiply = staticmethod(reference.silu_and_multiply)
    store_kv = staticmethod(reference.store_kv)
    attend = staticmethod(reference.attend)
    add_lora = staticmethod(reference.add_lora)

    def prepare(self, layers: Sequence[LoRALinear]) -> None:
        self.prepared = layers


def graphs_of(engine: Engine, record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]]) -> DecodeGraphs:
    runner = engine.runner
    assert runner.cache is not None and isinstance(runner.kernels, CapturingKernels)
    limits = Limits(64, -(-engine.max_model_len // 16), 16, scratch_block=engine.pool.num_blocks)
    return DecodeGraphs(engine.base.model, runner.cache, runner.kernels, runner.step, limits, record)


def build_engine(base: Path, kernels: CapturingKernels) -> Engine:
    settings = Settings(kv_cache_memory=0.003, max_batch_tokens=64)  # the interpreter copies all of it, every time
    return Engine(load_base(str(base), device=DEVICE, dtype="float32"), settings, kernels=kernels)


def answers(engine: Engine, adapters: dict[str, Path], requests: int, new_tokens: int) -> dict[str, list[int]]:
    """Prompts on the base, on adapters and on blends, arriving while others run."""
    digests = []
    for name, directory in adapters.items():
        version = version_of(name, directory)
        engine.bank.warm(version)
        digests.append(version.digest)
    mixes = [(), *[((digest, 1.0),) for digest in digests], tuple(sorted((d, 0.4) for d in digests[:3]))]
    deltas: dict[str, list[int]] = {}
    for number, prompt in enumerate(random_prompts(requests, seed=11)):
        prompt = prompt[: 90 if requests > 4 else 12]  # the interpreter is slow
        engine.add(request(f"{number}", prompt, mix=mixes[-1 - number % len(mixes)], max_tokens=new_tokens))
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).extend(delta.token_ids)
    for key, rest in drain(engine).items():
        deltas.setdefault(key, []).extend(tokens_of(rest))
    assert_nothing_held(engine)
    return deltas


def test_rows_are_filled_up_to_few_sizes() -> None:
    assert [round_up_rows(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 63, 64)] == [1, 2, 4, 8, 8, 16, 16, 24, 64, 64]


def test_captured_steps_answer_like_plain_ones(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    plain = build_engine(tiny_base, PlainKernels())
    plain.runner.graphs = None
    expected = answers(plain, tiny_adapters, 20, 8)
    captured = build_engine(tiny_base, PlainKernels())
    recorded: list[object] = []

    def record(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(step)
        return step

    captured.runner.graphs = graphs_of(captured, record)
    assert answers(captured, tiny_adapters, 20, 8) == expected
    assert 2 < len(recorded) < 12  # each shape once, not each step


@pytest.mark.slow
def test_captured_steps_of_the_triton_kernels_answer_like_plain_ones(
    tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    cuda = pytest.importorskip("serving.engine.kernels.cuda")
    plain = build_engine(tiny_base, PlainKernels())
    plain.runner.graphs = None
    captured = build_engine(tiny_base, cuda.CudaKernels(torch.device(DEVICE), 16))
    if DEVICE == "cpu":
        captured.runner.graphs = graphs_of(captured, lambda step: step)
    assert captured.runner.graphs is not None
    adapters = {name: tiny_adapters[name] for name in ("r2", "r16")}
    requests, new_tokens = (20, 8) if DEVICE == "cuda" else (2, 3)
    assert answers(captured, adapters, requests, new_tokens) == answers(plain, adapters, requests, new_tokens)
    assert captured.runner.graphs._captured


def decoding(tokens: int, blocks: list[int]) -> Chunk:
    sequence = Running(request("x", list(range(100, 100 + tokens))))
    sequence.blocks = blocks
    return Chunk(sequence, tokens - 1, 1)


def test_rows_that_only_fill_up_write_to_the_scratch_block_and_use_no_adapter() -> None:
    limits = Limits(max_rows=8, max_blocks=4, block_size=16, scratch_block=99)
    inputs = StepInputs(limits, torch.device(DEVICE))
    inputs.fill([decoding(40, [5, 6, 7]), decoding(3, [8])], [RowSegment(1, 2, ((3, 0.5),))], 4)
    assert inputs.places(4).tolist() == [7 * 16 + 7, 8 * 16 + 2, 99 * 16, 99 * 16]
    assert inputs.tokens(4).tolist() == [139, 102, 0, 0]
    assert inputs.positions(4).tolist() == [39, 2, 0, 0]
    assert inputs.decodes(4).lengths.tolist() == [40, 3, 1, 1]
    assert inputs.decodes(4).blocks[:, 0].tolist() == [5, 8, 99, 99]
    assert inputs.adapters(4, 1).segments == [RowSegment(1, 2, ((3, 0.5),))]
    # The next step is shorter: nothing of this one is left in the rows it fills up.
    inputs.fill([decoding(17, [1, 2])], [], 2)
    assert inputs.decodes(2).blocks[:, 0].tolist() == [1, 99] and inputs.adapters(2, 4).segments == []


def test_a_row_follows_its_sequence_through_growth_and_preemption() -> None:
    inputs = StepInputs(Limits(max_rows=1, max_blocks=4, block_size=4, scratch_block=9), torch.device(DEVICE))
    chunk = decoding(6, [1, 2])
    inputs.fill([chunk], [], 1)
    chunk.sequence.blocks.append(3)
    inputs.fill([Chunk(chunk.sequence, 5, 1)], [], 1)
    assert inputs.decodes(1).blocks[0, :3].tolist() == [1, 2, 3]
    chunk.sequence.blocks = [7, 8, 0]  # released, and given others
    inputs.fill([chunk], [], 1)
    assert inputs.decodes(1).blocks[0, :3].tolist() == [7, 8, 0]


class Watched(TorchDispatchMode):
    """Notes operations that need the host to know a value on the device, or the device one of the host's: a step with
    such an operation cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], list) else [])
        )
        if masks or name in {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh", "unique_dim"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU says so itself, when it captures")
def test_a_captured_step_never_waits_for_the_device(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    cuda = pytest.importorskip("serving.engine.kernels.cuda")
    engine = build_engine(tiny_base, cuda.CudaKernels(torch.device(DEVICE), 16))
    watched = Watched()

    def record(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        step()  # sets up
        with watched:
            step()
        return step

    engine.runner.graphs = graphs_of(engine, record)
    answers(engine, {"r2": tiny_adapters["r2"]}, 1, 2)
    assert engine.runner.graphs._captured and watched.found == []


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
def test_a_step_that_cannot_be_captured_runs_as_it_is() -> None:
    record = GraphRecorder()
    x = torch.ones(2, device="cuda")
    step = record(lambda: x * float(x.sum()))  # waits for the device
    assert step().tolist() == [2.0, 2.0]


def test_kernels_are_chosen_by_device() -> None:
    assert kernels_module.kernels_for(torch.device("cpu"), 4) is kernels_module.cpu
