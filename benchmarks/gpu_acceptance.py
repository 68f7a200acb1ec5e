"""Acceptance on one GPU: the figures of the design's targets, measured in one run and printed as one table.

    python benchmarks/gpu_acceptance.py [--shape 8b] [--device cuda] [--out results.json] [--only SECTION ...]

Needs torch, transformers, peft, pydantic and pydantic-settings, and this repository; bitsandbytes, trl and datasets
where they are installed. Models have random weights and are built on the device; nothing large is written. Every
section is a process of its own with its own time limit: one that fails or hangs is reported and the others run.
`--shape tiny --device cpu` rehearses the whole script without a GPU; its figures mean nothing."""

import argparse
import gc
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16


@dataclass(frozen=True)
class Shape:
    """A Qwen3 of random weights, and how much work it is given."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    prompt: int = 128
    new_tokens: int = 128
    clients: int = 64  # rows of the throughput comparisons
    length: int = 2048  # tokens of a training row


SHAPES = {
    "8b": Shape(4096, 12288, 36, 32, 8, 128, 151_936),
    "0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151_936),
    "6b": Shape(4096, 13696, 28, 32, 2, 128, 65_024),  # for training memory
    "tiny": Shape(64, 128, 2, 4, 2, 32, 512, prompt=12, new_tokens=6, clients=8, length=64),
}


@dataclass(frozen=True)
class Figure:
    section: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""
    holds: bool | None = None  # None: no target, or nothing to compare with


class Run:
    """One section's surroundings; figures are on disk as soon as they are known."""

    def __init__(self, section: str, shape: str, device: str, out: Path):
        self.section = section
        self.shape_name = shape
        self.shape = SHAPES[shape]
        self.device = torch.device(device)
        self.dtype = torch.bfloat16
        self.out = out

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def report(
        self, name: str, value: float | str, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        """A figure, with the least or the most it should be. Only the real shape on a GPU is held to it."""
        target = f"≥ {least:g}" if least is not None else f"≤ {most:g}" if most is not None else ""
        holds = None
        if target and not isinstance(value, str) and self.on_cuda and self.shape_name == "8b":
            holds = value >= least if least is not None else value <= (most or 0.0)
        value = value if isinstance(value, str) else float(f"{value:.4g}")
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Figure(self.section, name, value, unit, target, holds))) + "\n")

    def check(self, name: str, holds: bool, value: float | str = "") -> None:
        """A claim that is right or wrong on any device."""
        with self.out.open("a", encoding="utf-8") as file:
            figure = Figure(self.section, name, value or ("yes" if holds else "NO"), "", "holds", holds)
            file.write(json.dumps(asdict(figure)) + "\n")

    def wait(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Median time of `work`, after one warm-up."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


# --- models, adapters, requests ---


def build_model(shape: Shape, device: torch.device, dtype: torch.dtype, *, max_length: int = 4096) -> Any:
    """Random weights, made where they will be used."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()


def base_of(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoTokenizer

    from adapters.base_model import BaseModel
    from adapters.settings import BUNDLED

    directory = BUNDLED / "bianlian-mini"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return BaseModel("random", directory, "random", model, tokenizer, dtype, device)


def build_engine(run: Run, model: Any | None = None, **settings: Any) -> Any:
    from adapters.settings import Settings
    from serving.engine.engine import Engine

    model = model if model is not None else build_model(run.shape, run.device, run.dtype)
    options = {
        "kv_cache_memory": 16.0 if run.shape_name == "8b" else 0.5,
        "max_running": run.shape.clients,
        "max_batch_tokens": 4096,
        "max_model_len": min(2048, model.config.max_position_embeddings),
        "prefix_cache": False,
        **settings,
    }
    return Engine(base_of(model, model.dtype, run.device), Settings(**options))


def put_adapters(engine: Any, count: int, rank: int = RANK) -> list[str]:
    """`count` random adapters in host memory, as if read from disk. Every eighth shares its tensors: what they hold
    does not matter to the time they take."""
    from serving.engine.lora import Delta
    from serving.engine.packed import pack

    different: list[Any] = []
    for _ in range(min(count, 8)):
        deltas = {}
        for name, (in_features, out_features) in engine.base.linear_shapes.items():
            if name.rsplit(".", 1)[-1] in TARGETS:
                options = {"dtype": engine.base.dtype, "device": engine.base.device}
                a = torch.randn(rank, in_features, **options) / in_features**0.5
                b = torch.randn(rank, out_features, **options) * 0.02
                deltas[name] = Delta(a.cpu(), b.cpu())
        different.append(pack(deltas, page_locked=engine.base.device.type == "cuda"))
    digests = [f"adapter-{number}" for number in range(count)]
    for number, digest in enumerate(digests):
        engine.bank._host[digest] = different[number % len(different)]
    return digests


def prompts(run: Run, count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, run.shape.vocabulary) for _ in range(run.shape.prompt)] for _ in range(count)]


def ask(name: str, prompt: Sequence[int], digest: str | None, new_tokens: int) -> Any:
    from serving.engine.sequence import Request, SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    return Request(name, tuple(prompt), params, ((digest, 1.0),) if digest else ())


def answer(engine: Any, requests: Sequence[Any]) -> dict[str, list[int]]:
    """All at once, until the last is done."""
    for request in requests:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in requests}
    while engine.has_work:
        for delta in engine.step():
            if delta.error:
                raise RuntimeError(delta.error)
            tokens[delta.request_id] += delta.token_ids
    return tokens


def tokens_per_s(run: Run, engine: Any, digests: Sequence[str | None], new_tokens: int) -> float:
    """Output tokens a second, prompts included, one request for each of `digests`. The first time sets up."""

    def work() -> None:
        chosen = zip(prompts(run, len(digests)), digests, strict=True)
        answer(engine, [ask(f"{n}", prompt, digest, new_tokens) for n, (prompt, digest) in enumerate(chosen)])

    return len(digests) * new_tokens / run.seconds(work, repeats=3)


# --- sections ---


def copy_bandwidth(run: Run) -> float:
    """Bytes read and written a second by a device-to-device copy of 4 GiB."""
    size = 2**32 if run.on_cuda else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    return 2 * size / run.seconds(lambda: target.copy_(source), repeats=10)


def kernels(run: Run) -> None:
    """The CUDA kernels against the plain ones, at the shape's own sizes."""
    if not run.on_cuda:
        run.report("kernels", "needs CUDA; tests/serving/test_triton.py runs them in the interpreter")
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


def serving(run: Run) -> None:
    """Decoding speed, mixed adapters, more adapters than slots, activation."""
    bandwidth = copy_bandwidth(run)
    run.report("copy bandwidth", bandwidth / 1e9, "GB/s")
    engine = build_engine(run)
    model = engine.base.model
    read = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    [prompt] = prompts(run, 1)
    engine.add(ask("warm", prompt, None, 8))
    while engine.has_work:
        engine.step()
    engine.add(ask("one", prompt, None, run.shape.new_tokens))
    engine.step()  # the prompt
    engine.step()
    run.wait()
    start, steps = time.perf_counter(), 0
    while engine.has_work:
        engine.step()
        steps += 1
    step_s = (time.perf_counter() - start) / steps
    run.report("decode, 1 row", 1 / step_s, "tokens/s")
    run.report("decode, 1 row, of the bandwidth limit", read / bandwidth / step_s, "", least=0.8)
    if run.on_cuda and engine.runner.graphs is not None:
        replay = list(engine.runner.graphs._captured.values())[0]
        run.report("of the limit, device alone", read / bandwidth / run.seconds(replay, repeats=20))

    digests = put_adapters(engine, 64)
    for rows in (8, run.shape.clients):
        mixed = [digests[n % 8] for n in range(rows)]
        base_speed = tokens_per_s(run, engine, [None] * rows, run.shape.new_tokens)
        mixed_speed = tokens_per_s(run, engine, mixed, run.shape.new_tokens)
        run.report(f"base, {rows} rows", base_speed, "tokens/s")
        run.report(f"8 adapters mixed, {rows} rows", mixed_speed, "tokens/s")
        run.report(f"8 adapters mixed / base, {rows} rows", mixed_speed / base_speed, "", least=0.95)

    unused = [digest for digest in digests if digest not in engine.bank.active]
    times = []
    for digest in unused[: min(20, len(unused))]:
        run.wait()
        start = time.perf_counter()
        engine.bank.activate([digest], [])
        if engine.runner.graphs is not None:
            engine.runner.kernels.prepare(engine.runner.graphs.layers)
        run.wait()
        times.append(time.perf_counter() - start)
    run.report("host → device activation", 1000 * statistics.median(times), "ms", most=50)

    warm = first_tokens_s(run, engine, digests[:16])
    crowded = first_tokens_s(run, engine, digests)
    run.report("TTFT p95, 16 adapters in 16 slots", 1000 * percentile(warm, 95), "ms")
    run.report("TTFT p95, 64 adapters in 16 slots", 1000 * percentile(crowded, 95), "ms")
    run.report("64 over 16 slots / warm, TTFT p95", percentile(crowded, 95) / percentile(warm, 95), "", most=3)


def first_tokens_s(run: Run, engine: Any, digests: Sequence[str]) -> list[float]:
    """Seconds to the first token, in a closed loop of 16 clients that ask random adapters."""
    rng = random.Random(1)
    asked: dict[str, float] = {}
    waits: list[float] = []
    texts = prompts(run, 16, seed=2)
    total = 200 if run.on_cuda else 24

    def next_request() -> None:
        name = f"{len(asked)}"
        engine.add(ask(name, rng.choice(texts), rng.choice(digests), max(4, run.shape.new_tokens // 4)))
        asked[name] = time.perf_counter()

    for _ in range(16):
        next_request()
    answered: set[str] = set()
    while engine.has_work:
        for delta in engine.step():
            if delta.error:
                raise RuntimeError(delta.error)
            if delta.request_id not in answered:
                answered.add(delta.request_id)
                waits.append(time.perf_counter() - asked[delta.request_id])
            if delta.finish_reason and len(asked) < total:
                next_request()
    return waits[16:]  # the first ones all start at once


def percentile(values: Sequence[float], share: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


def continuous(run: Run) -> None:
    """Against transformers' own continuous batching, on the base."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = build_model(run.shape, run.device, run.dtype)
    texts = prompts(run, run.shape.clients)
    config = GenerationConfig(
        max_new_tokens=run.shape.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    limits = ContinuousBatchingConfig(max_memory_percent=0.5 if run.on_cuda else 0.1, max_batch_tokens=4096)
    produced: list[int] = []

    def theirs() -> None:
        # Kept between calls: the cache and the graphs of the first one serve the others.
        results = model.generate_batch(
            inputs=texts, generation_config=config, continuous_batching_config=limits, persistent_manager=True
        )
        produced.append(sum(len(result.generated_tokens) for result in results.values()))

    peer = len(texts) * run.shape.new_tokens / run.seconds(theirs, repeats=2)
    run.check("transformers answered in full", set(produced) == {len(texts) * run.shape.new_tokens}, f"{produced}")
    model.destroy_cached_continuous_batching_manager()
    gc.collect()
    if run.on_cuda:
        torch.cuda.empty_cache()
    ours = tokens_per_s(run, build_engine(run, model), [None] * len(texts), run.shape.new_tokens)
    run.report("transformers continuous batching", peer, "tokens/s")
    run.report("ours", ours, "tokens/s")
    run.report("ours / transformers continuous batching", ours / peer, "", least=1.0)


def peft_mixed(run: Run) -> None:
    """Against PEFT's mixed batch: eight adapters in one call of generate."""
    from peft import LoraConfig, get_peft_model

    rows = 8
    engine = build_engine(run)
    ours = tokens_per_s(run, engine, put_adapters(engine, rows), run.shape.new_tokens)
    del engine
    gc.collect()
    if run.on_cuda:
        torch.cuda.empty_cache()
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(build_model(run.shape, run.device, run.dtype), config, adapter_name="a0")
    for number in range(1, rows):
        model.add_adapter(f"a{number}", config)
    model = model.to(run.device, run.dtype).eval()
    ids = torch.tensor(prompts(run, rows), device=run.device)
    names = [f"a{number}" for number in range(rows)]

    def theirs() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            adapter_names=names,
            max_new_tokens=run.shape.new_tokens,
            do_sample=False,
        )

    peer = rows * run.shape.new_tokens / run.seconds(theirs, repeats=1)
    run.report("PEFT mixed batch, 8 rows", peer, "tokens/s")
    run.report("ours, 8 rows", ours, "tokens/s")
    run.report("ours / PEFT mixed batch", ours / peer, "", least=4.0)


def divergence(run: Run) -> None:
    """How often greedy answers in bfloat16 differ from transformers' one at a time: ours, and its own batch."""
    model = build_model(run.shape, run.device, run.dtype)
    texts, count = prompts(run, 16 if run.on_cuda else 4, seed=5), min(32, run.shape.new_tokens)
    options = {"max_new_tokens": count, "do_sample": False}

    def generate(batch: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(batch, device=run.device)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        result: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return result

    alone = [generate([text])[0] for text in texts]
    together = generate(texts)
    engine = build_engine(run, model)
    ours = list(answer(engine, [ask(f"{n}", text, None, count) for n, text in enumerate(texts)]).values())
    one = [answer(engine, [ask("one", text, None, count)])["one"] for text in texts]
    for name, answers in (("transformers, batched", together), ("ours, batched", ours), ("ours, one at a time", one)):
        run.report(f"answers unlike transformers alone: {name}", sum(map(differ, answers, alone)) / len(alone))
    run.report("answers unlike ours alone: ours, batched", sum(map(differ, ours, one)) / len(one))


def differ(a: list[int], b: list[int]) -> bool:
    return a != b


# --- training ---


def training_speed(run: Run) -> None:
    """LoRA and full training in the same plain loop; the training package against a plain TRL script."""
    shape = run.shape if run.shape_name == "tiny" else SHAPES["0.6b"]
    speeds = {}
    for method in ("lora", "full"):
        step, length = training_step(run, shape, method)
        speeds[method] = length / run.seconds(step, repeats=3)
        run.report(f"{method}, plain loop", speeds[method], "tokens/s")
        del step
        gc.collect()
        if run.on_cuda:
            torch.cuda.empty_cache()
    run.report("LoRA / full, shape 0.6B", speeds["lora"] / speeds["full"])
    if not run.on_cuda:
        run.report("training package / TRL", "needs CUDA; benchmarks on CPU measure it there")
    elif all(importlib.util.find_spec(name) for name in ("trl", "datasets")):
        ours, theirs = package_and_trl(run, shape)
        run.report("TRL script", theirs, "tokens/s")
        run.report("training package", ours, "tokens/s")
        run.report("training package / TRL", ours / theirs, "", least=0.95)
    else:
        run.report("training package / TRL", "not measured: trl or datasets is not installed")


def package_and_trl(run: Run, shape: Shape) -> tuple[float, float]:
    """Tokens a second of `training.trainer` and of a TRL script with the same settings, on the same rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from training import trainer
    from training.config import Plan, TrainConfig
    from training.dataset import TrainingRow

    rng = random.Random(0)
    ids = [[rng.randrange(1, shape.vocabulary) for _ in range(512)] for _ in range(128)]
    times = []
    with tempfile.TemporaryDirectory() as directory:
        base = base_of(build_model(shape, run.device, run.dtype), run.dtype, run.device)
        config = TrainConfig(data=(Path("none"),), name="speed", epochs=1, lora_r=RANK)
        plan = Plan(1e-4, 8, 8, 2 * RANK, 512, False)
        rows = [TrainingRow(row, row, None) for row in ids]  # type: ignore[arg-type]
        model = trainer.add_adapter(base, config, plan)
        start = time.perf_counter()
        trainer.train(base, model, rows, config, plan, Path(directory) / "ours")
        times.append(time.perf_counter() - start)
        del model, base
        plain = SFTTrainer(
            model=build_model(shape, run.device, run.dtype),
            args=SFTConfig(
                output_dir=f"{directory}/theirs",
                num_train_epochs=1,
                per_device_train_batch_size=8,
                learning_rate=1e-4,
                optim="adamw_torch_fused",
                bf16=True,
                gradient_checkpointing=False,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=base_tokenizer(),
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        start = time.perf_counter()
        plain.train()
        times.append(time.perf_counter() - start)
    count = sum(map(len, ids))
    return count / times[0], count / times[1]


def base_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from adapters.settings import BUNDLED

    return AutoTokenizer.from_pretrained(BUNDLED / "bianlian-mini")


def training_memory(run: Run) -> None:
    """Peak memory of one step at a 6B shape: batch 1, length 2,048, rank 8 on all linear layers, checkpointing."""
    if not run.on_cuda:
        run.report("training memory", "needs CUDA")
        return
    shape = SHAPES["6b"] if run.shape_name == "8b" else run.shape
    speeds = {}
    for method, most in (("lora", 15_226), ("qlora", 8_422), ("full", 68_450)):
        if method == "qlora" and not importlib.util.find_spec("bitsandbytes"):
            run.report("qlora, peak memory", "not measured: bitsandbytes is not installed")
            continue
        step, length = training_step(run, shape, method, rank=8)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        speeds[method] = length / run.seconds(step, repeats=2)
        run.report(f"{method}, peak memory", torch.cuda.max_memory_reserved() / 2**20, "MiB", most=most)
        run.report(f"{method}, 6B", speeds[method], "tokens/s")
        del step
        gc.collect()
        torch.cuda.empty_cache()
    run.report("LoRA / full, 6B", speeds["lora"] / speeds["full"], "", least=2.0)


def training_step(run: Run, shape: Shape, method: str, rank: int = RANK) -> tuple[Callable[[], None], int]:
    """One step of a plain loop with gradient checkpointing, batch 1; and its tokens."""
    from peft import LoraConfig, get_peft_model

    model = build_model(shape, run.device, run.dtype)
    model.config.use_cache = False
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "full":
        model.requires_grad_(True)
    else:
        if method == "qlora":
            quantise(model)
        model.enable_input_require_grads()
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=run.on_cuda)
    ids = torch.randint(1, shape.vocabulary, (1, shape.length), device=run.device)

    def step() -> None:
        with torch.autocast(run.device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, shape.length


def quantise(model: Any) -> None:
    """Every linear layer of the blocks to 4 bits (nf4, double quantisation), in place."""
    import bitsandbytes as bnb

    for name, linear in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] not in TARGETS:
            continue
        quantised = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        quantised.weight = bnb.nn.Params4bit(
            linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantised.to(linear.weight.device))


# --- the whole ---

SECTIONS: dict[str, tuple[Callable[[Run], None], int]] = {  # correctness first; limits in seconds
    "kernels": (kernels, 70),
    "tokens": (tokens, 70),
    "serving": (serving, 130),
    "continuous": (continuous, 90),
    "peft_mixed": (peft_mixed, 70),
    "divergence": (divergence, 45),
    "training_memory": (training_memory, 60),
    "training_speed": (training_speed, 60),
}
WHOLE_S = 530  # under nine minutes


def run_section(name: str, options: argparse.Namespace, limit_s: float) -> tuple[list[dict[str, Any]], str | None]:
    """The section's figures, those before a failure too, and how it failed."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "figures.jsonl"
        out.touch()
        command = [sys.executable, __file__, "--section", name, "--out", str(out)]
        command += ["--shape", options.shape, "--device", options.device]
        try:
            done = subprocess.run(command, timeout=limit_s, capture_output=True, text=True, cwd=ROOT)
            failure = None if done.returncode == 0 else done.stderr[-6000:]
        except subprocess.TimeoutExpired as error:
            printed = error.stderr.decode(errors="replace")[-2000:] if error.stderr else ""
            failure = f"ran past its {limit_s:.0f} s\n{printed}"
        figures = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return figures, failure


def print_table(figures: Sequence[dict[str, Any]], failures: dict[str, str]) -> None:
    marks = {True: "ok", False: "MISSED", None: ""}
    rows = [
        (f["section"], f["name"], f"{f['value']} {f['unit']}".strip(), f["target"], marks[f["holds"]]) for f in figures
    ]
    rows += [
        (name, "failed", failure.strip().splitlines()[-1][:90], "", "FAILED") for name, failure in failures.items()
    ]
    for row in rows:
        print(f"{row[0]:<16} {row[1]:<56} {row[2]:>24}  {row[3]:<10} {row[4]}")


@contextmanager
def quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["8b", "0.6b", "tiny"], default="8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file; default $OUT/gpu_acceptance.json, or beside the results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        with quiet():
            SECTIONS[options.section][0](Run(options.section, options.shape, options.device, options.out))
        return 0
    out = options.out or Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")) / "gpu_acceptance.json"
    started = time.perf_counter()
    figures: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in options.only or SECTIONS:
        left = WHOLE_S - (time.perf_counter() - started)
        began = time.perf_counter()
        if left < 10:
            failures[name] = f"not run: the {WHOLE_S} s of the whole were used up"
        else:
            found, failure = run_section(name, options, min(left, SECTIONS[name][1]))
            figures += found
            if failure:
                failures[name] = failure
        seconds[name] = round(time.perf_counter() - began, 1)
        device = torch.cuda.get_device_name() if options.device == "cuda" and torch.cuda.is_available() else "cpu"
        result = {"device": device, "shape": options.shape, "torch": torch.__version__, "figures": figures}
        out.write_text(json.dumps({**result, "failures": failures, "seconds": seconds}, indent=1, ensure_ascii=False))
    print_table(figures, failures)
    print(f"\n{time.perf_counter() - started:.0f} s in all; {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(1)
