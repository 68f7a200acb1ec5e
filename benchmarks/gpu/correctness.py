"""Sections that are right or wrong: the CUDA kernels against the plain ones, the engine's tokens against PEFT's."""

import importlib.util
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import answer, ask
from benchmarks.gpu.run import Run


def kernels(run: Run) -> None:
    """The CUDA kernels against the plain ones, at the shape's own sizes; in Triton's interpreter without a GPU."""
    if not run.on_cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are defined
    if not importlib.util.find_spec("triton"):
        run.report("kernels", "not checked: triton is not installed")
        return
    from serving.engine.kernels import reference
    from serving.engine.kernels.cuda import CudaKernels
    from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, PagedDecodes, Span
    from serving.engine.kv_cache import LayerCache
    from serving.engine.lora import Delta, LoRALinear, RowSegment, StepAdapters, StepRows

    shape, device = run.shape, run.device
    ours = CudaKernels(device, 16)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        kv = shape.kv_heads * shape.head_dim
        layer = LoRALinear(
            torch.nn.Identity(), {"q": shape.heads * shape.head_dim, "k": kv, "v": kv}, StepAdapters(), ours
        )
        for slot, rank in ((1, 4), (2, 16), (3, 128), (5, 64)):
            for member, columns in layer.columns.items():
                width = columns.stop - columns.start
                a = torch.randn(rank, shape.hidden, device=device) / shape.hidden**0.5
                b = torch.randn(rank, width, device=device) / rank**0.5
                layer.load(slot, member, Delta(a.to(dtype), b.to(dtype)))
        for rows, height in ((16, 2), (1024, 200)):  # by rows, by tiles
            mixes = [((1, 1.0),), ((2, 0.5),), ((3, 1.0), (5, -1.0)), ((5, 1.0),), ()]
            segments = [
                RowSegment(start, min(start + height, rows), mixes[number % 5])
                for number, start in enumerate(range(0, rows, height))
                if mixes[number % 5]
            ]
            x = torch.randn(rows, shape.hidden, device=device).to(dtype)
            out = torch.zeros(rows, layer.columns["v"].stop, device=device, dtype=dtype)
            expected = out.clone()
            ours.add_lora(out, x, layer, StepRows(segments))
            reference.add_lora(expected, x, layer, StepRows(segments))
            run.check(f"LoRA {rows} rows {dtype}", *close(out, expected, dtype))
        lengths = [1, 17, 300, 1500]
        blocks = torch.randperm(512, device=device)[: 4 * 100].view(4, 100).int()
        cache = LayerCache(
            *(torch.randn(shape.kv_heads, 512 * 16, shape.head_dim, device=device).to(dtype) for _ in range(2))
        )
        paged = PagedDecodes(blocks, torch.tensor(lengths, dtype=torch.int32, device=device), 16)
        query = torch.randn(4, shape.heads, shape.head_dim, device=device).to(dtype)
        for name, spec in (("plain", AttentionSpec(0.1)), ("window", AttentionSpec(0.1, window=200))):
            expected = reference.attend(query, cache, paged, spec)
            run.check(f"decoding {name} {dtype}", *close(ours.attend(query, cache, paged, spec), expected, dtype))
            spans, row = [], 0
            for count, span in zip((1, 17, 40, 700), paged.spans, strict=True):
                spans.append(Span(row, count, span.length, span.slots))
                row += count
            mixed = torch.randn(row, shape.heads, shape.head_dim, device=device).to(dtype)
            plan = AttentionPlan(spans)
            expected = reference.attend(mixed, cache, plan, spec)
            run.check(f"prompts {name} {dtype}", *close(ours.attend(mixed, cache, plan, spec), expected, dtype))


def close(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the error is within rounding, and how large it is beside the largest value."""
    error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-9))
    return error < (1e-4 if dtype == torch.float32 else 2e-2), f"{error:.1e}"


def tokens(run: Run) -> None:
    """Engine against PEFT and graphs against none, greedy in float32 on a small model with adapters of four ranks."""
    from peft import PeftModel
    from transformers import Qwen3ForCausalLM

    from adapters.base_model import load_base
    from adapters.manifest import AdapterVersion, digest_of
    from adapters.settings import Settings
    from serving.engine.engine import Engine
    from tests import tiny

    with tempfile.TemporaryDirectory() as directory:
        base = tiny.save_base(Path(directory) / "base", layers=3)
        adapters = {
            f"r{rank}": tiny.save_adapter(Path(directory) / f"r{rank}", base, rank=rank, seed=rank)
            for rank in (2, 8, 33, 128)
        }
        peers = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(base), adapters["r2"], "r2")
        for name in list(adapters)[1:]:
            peers.load_adapter(adapters[name], name)
        peers = peers.to(run.device).eval()
        peers.generation_config.eos_token_id = None
        rng = random.Random(0)
        wanted = [
            (rng.choice([None, *adapters]), [rng.randrange(10, 8000) for _ in range(rng.randrange(1, 200))])
            for _ in range(40 if run.on_cuda else 8)
        ]
        answers = []
        for graphs in (True, False):
            engine = Engine(
                load_base(str(base), device="cuda" if run.on_cuda else "cpu", dtype="float32"),
                Settings(kv_cache_memory=0.2, max_batch_tokens=256),
            )
            if not graphs:
                engine.runner.graphs = None
            digests = {}
            for name, path in adapters.items():
                version = AdapterVersion(name, 1, digest_of(path), path, None)
                engine.bank.warm(version)
                digests[name] = version.digest
            requests = [
                ask(f"{n}", prompt, digests[name] if name else None, 16) for n, (name, prompt) in enumerate(wanted)
            ]
            answers.append(list(answer(engine, requests).values()))
        if run.on_cuda:
            run.check("graphs give the tokens of plain steps", answers[0] == answers[1])
        same = sum(
            ours == peft_answer(peers, name, prompt, run.device)
            for ours, (name, prompt) in zip(answers[0], wanted, strict=True)
        )
        run.check("engine = PEFT, greedy, float32", same == len(wanted), f"{same} of {len(wanted)}")


def peft_answer(model: Any, name: str | None, prompt: list[int], device: torch.device) -> list[int]:
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([prompt], device=device)
    if name is None:
        with model.disable_adapter():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    else:
        model.set_adapter(name)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer
