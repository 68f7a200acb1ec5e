"""Sections that time serving: alone, and beside transformers and PEFT on the same weights."""

import gc
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.models import (
    RANK,
    TARGETS,
    answer,
    ask,
    build_engine,
    build_model,
    prompts,
    put_adapters,
    tokens_per_s,
)
from benchmarks.gpu.run import Run


def copy_bandwidth(run: Run) -> float:
    """Bytes read and written a second by a device-to-device copy of 4 GiB."""
    size = 2**32 if run.on_cuda else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    return 2 * size / run.seconds(lambda: target.copy_(source), repeats=10)


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

    seconds = run.seconds(theirs, repeats=2)
    run.check("transformers answered in full", set(produced) == {len(texts) * run.shape.new_tokens}, f"{produced}")
    peer = produced[-1] / seconds
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
