"""Random models, random adapters and requests, made on the device; and an engine that answers them."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.run import Run, Shape

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16


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
