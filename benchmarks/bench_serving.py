"""`make bench`: our server over HTTP against transformers and PEFT in process, in one run on one machine.

Workload: prompts of 128 random tokens' worth of text, 64 tokens out, greedy, end-of-turn ignored, closed loop,
streaming, prefix cache off. Absolute figures hold for this machine and moment only; read the ratios."""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from adapters.settings import BUNDLED

PROMPT_TOKENS = 128
NEW_TOKENS = 64
ADAPTERS = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    # hidden, mlp, layers, heads, kv heads, head_dim, vocabulary (None: the tokenizer's)
    "mini": (320, 1024, 6, 6, 2, 64, None),
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
}


@dataclass(frozen=True)
class Figure:
    system: str
    workload: str
    tokens_per_s: float
    ttft_ms: float | None = None  # median


def build_base(shape: str, directory: Path) -> None:
    hidden, mlp, layers, heads, kv_heads, head_dim, vocabulary = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "bianlian-mini")
    config = Qwen3Config(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_adapter(base: Path, directory: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    tuned.save_pretrained(directory)


def prompts(count: int) -> list[str]:
    """Texts that render to about PROMPT_TOKENS tokens each, all different."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "bianlian-mini")
    generator = torch.Generator().manual_seed(1)
    out = []
    for _ in range(count):
        ids = torch.randint(300, 8000, (PROMPT_TOKENS - 10,), generator=generator).tolist()
        out.append(tokenizer.decode(ids))
    return out


class Server:
    """`bianlian serve` as a process of its own."""

    def __init__(self, base: Path, adapters: dict[str, Path], home: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "app",
            "serve",
            "--base",
            str(base),
            "--no-ui",
            "--port",
            self.url.split(":")[-1],
        ]
        for name, path in adapters.items():
            command += ["--adapter", f"{name}={path}"]
        environment = os.environ | {"BIANLIAN_HOME": str(home), "BIANLIAN_PREFIX_CACHE": "false"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/ready", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError("the server did not become ready")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def measure(self, workload: str, models: list[str], rounds: int) -> Figure:
        """One closed-loop client a model name; the first round is warm-up."""
        texts = prompts(len(models))
        counts: list[int] = []
        ttfts: list[float] = []
        barrier = threading.Barrier(len(models) + 1)

        def ask(model: str, text: str) -> tuple[int, float]:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": text}],
                "temperature": 0,
                "max_tokens": NEW_TOKENS,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started, first, tokens = time.perf_counter(), 0.0, 0
            with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=600) as reply:
                for line in reply.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                        first = time.perf_counter() - started
                    if event.get("usage"):
                        tokens = event["usage"]["completion_tokens"]
            return tokens, first

        def client(model: str, text: str) -> None:
            ask(model, text)
            barrier.wait()
            for _ in range(rounds):
                tokens, first = ask(model, text)
                counts.append(tokens)
                ttfts.append(first)

        threads = [threading.Thread(target=client, args=pair) for pair in zip(models, texts, strict=True)]
        for thread in threads:
            thread.start()
        barrier.wait()
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - started
        return Figure("bianlian", workload, sum(counts) / wall, statistics.median(ttfts) * 1000)


def measure_in_process(
    base: Path, adapters: dict[str, Path], workload: str, names: list[str | None], rounds: int
) -> Figure:
    """transformers' generate on a static batch; with adapters PEFT's mixed batch (`adapter_names`)."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    options: dict[str, object] = {}
    if any(names):
        peft = None
        for name, path in adapters.items():
            if peft is None:
                peft = PeftModel.from_pretrained(model, path, name)
            else:
                peft.load_adapter(path, name)
        model = peft
        options["adapter_names"] = [name or "__base__" for name in names]
    model.eval()
    chats = [[{"role": "user", "content": text}] for text in prompts(len(names))]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )

    def run() -> None:
        model.generate(**batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options)

    run()
    started = time.perf_counter()
    for _ in range(rounds):
        run()
    wall = time.perf_counter() - started
    return Figure("PEFT" if any(names) else "transformers", workload, rounds * NEW_TOKENS * len(names) / wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, help="default: benchmarks/results/serving-SHAPE.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        base = root / "bench-base"
        build_base(arguments.shape, base)
        adapters = {f"a{number}": root / f"a{number}" for number in range(ADAPTERS)}
        for number, path in enumerate(adapters.values()):
            build_adapter(base, path, number)
        mixed: list[str | None] = [None, *adapters, None, *list(adapters)[: 8 - ADAPTERS - 2]]
        workloads: dict[str, list[str | None]] = {
            "1 client, base": [None],
            "1 client, one adapter": ["a0"],
            "2 clients, base + tuned": [None, "a0"],
            "8 clients, base": [None] * 8,
            "8 clients, one adapter": ["a0"] * 8,
            "8 clients, base + 4 adapters": mixed,
        }
        server = Server(base, adapters, root / "home")
        try:
            figures = [
                server.measure(workload, [name or base.name for name in names], arguments.rounds)
                for workload, names in workloads.items()
            ]
        finally:
            server.close()
        figures += [
            measure_in_process(base, adapters, workload, names, arguments.rounds)
            for workload, names in workloads.items()
        ]
    report(arguments.shape, list(workloads), figures, arguments.json)


def report(shape: str, workloads: list[str], figures: list[Figure], path: Path | None) -> None:
    ours = {figure.workload: figure for figure in figures if figure.system == "bianlian"}
    peers = {figure.workload: figure for figure in figures if figure.system != "bianlian"}
    table = Table("workload", "bianlian, tokens/s", "TTFT, ms", "in process, tokens/s", "ratio", title=f"shape {shape}")
    for workload in workloads:
        mine, peer = ours[workload], peers[workload]
        table.add_row(
            workload,
            f"{mine.tokens_per_s:.1f}",
            f"{mine.ttft_ms:.0f}",
            f"{peer.tokens_per_s:.1f} ({peer.system})",
            f"{mine.tokens_per_s / peer.tokens_per_s:.2f}",
        )
    Console(width=110).print(table)
    path = path or Path(__file__).parent / "results" / f"serving-{shape}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    path.write_text(
        json.dumps({"shape": shape, "machine": machine, "figures": [asdict(f) for f in figures]}, indent=2) + "\n"
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
