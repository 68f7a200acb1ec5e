"""How often the same greedy request gets another text when it has company, in bfloat16: ours beside transformers.

A request is a question to the bundled base or to its persona. Each is answered alone, and again among others: in our
engine in a batch that is always full, with rows of both models that come and go; in transformers in a left-padded
static batch (PEFT's `adapter_names` decides the rows' models). Rounding differs with the shape of a product, so a
token chosen by a hair's breadth may change, and everything after it. In float32 the rate should be 0 for both."""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.base_model import load_base
from adapters.manifest import AdapterVersion, digest_of
from adapters.renderer import ChatRenderer
from adapters.settings import BUNDLED, DType, Settings
from benchmarks.results import write_results
from serving.engine.engine import Engine
from serving.engine.sequence import Request, SamplingParams
from training.data.formats import read_data

PERSONA = BUNDLED / "personas" / "wukong"
DATA = (BUNDLED / "data" / "wukong.json", BUNDLED / "data" / "wukong_everyday.jsonl")

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    prompt_ids: Tokens
    tuned: bool


@dataclass(frozen=True)
class Divergence:
    system: str
    requests: int
    differing: int
    first_difference: float | None  # mean position of the first token that differs

    @property
    def rate(self) -> float:
        return self.differing / self.requests


def questions(renderer: ChatRenderer, count: int) -> list[Question]:
    """Different questions of the sample data, each to base or persona in turn."""
    texts = sorted({row.messages[0]["content"] for path in DATA for row in read_data(path).rows})
    if len(texts) < count:
        raise SystemExit(f"the sample data has {len(texts)} different questions, not {count}")
    chosen = random.Random(0).sample(texts, count)
    return [
        Question(tuple(renderer.prompt_ids([{"role": "user", "content": text}])), tuned=number % 2 == 1)
        for number, text in enumerate(chosen)
    ]


class Ours:
    name = "bianlian"

    def __init__(self, dtype: DType, batch: int, max_tokens: int):
        settings = Settings(dtype=dtype, device="cpu", prefix_cache=False, max_running=batch, kv_cache_memory=0.25)
        base = load_base(dtype=dtype, device="cpu")
        self.renderer = ChatRenderer(base.tokenizer, base.stop_token_ids)
        self.engine = Engine(base, settings)
        self.persona = AdapterVersion("persona", 1, digest_of(PERSONA), PERSONA, None)
        self.engine.bank.warm(self.persona)
        self.params = SamplingParams(temperature=0, max_tokens=max_tokens)

    def alone(self, asked: list[Question]) -> Iterator[Tokens]:
        for question in asked:
            yield self._answer([question])[0]

    def together(self, asked: list[Question]) -> Iterator[Tokens]:
        """All queued at once: as one answer ends, the next question takes its row."""
        yield from self._answer(asked)

    def _answer(self, asked: list[Question]) -> list[Tokens]:
        answers: dict[str, list[int]] = {str(number): [] for number in range(len(asked))}
        for number, question in enumerate(asked):
            mix = ((self.persona.digest, 1.0),) if question.tuned else ()
            self.engine.add(Request(str(number), question.prompt_ids, self.params, mix))
        while self.engine.has_work:
            for delta in self.engine.step():
                if delta.error:
                    raise RuntimeError(delta.error)
                answers[delta.request_id] += delta.token_ids
        return [tuple(tokens) for tokens in answers.values()]


class Transformers:
    name = "transformers / PEFT"

    def __init__(self, dtype: DType, batch: int, max_tokens: int):
        base = load_base(dtype=dtype, device="cpu")
        self.batch = batch
        self.max_tokens = max_tokens
        self.stops = base.stop_token_ids
        self.pad = base.tokenizer.pad_token_id
        self.model = PeftModel.from_pretrained(base.model, PERSONA, adapter_name="persona").eval()

    def alone(self, asked: list[Question]) -> Iterator[Tokens]:
        for question in asked:
            yield from self._answer([question])

    def together(self, asked: list[Question]) -> Iterator[Tokens]:
        for start in range(0, len(asked), self.batch):
            yield from self._answer(asked[start : start + self.batch])

    def _answer(self, asked: list[Question]) -> list[Tokens]:
        longest = max(len(question.prompt_ids) for question in asked)
        padding = [longest - len(question.prompt_ids) for question in asked]
        ids = [[self.pad] * pad + list(question.prompt_ids) for pad, question in zip(padding, asked, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        out = self.model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            adapter_names=["persona" if question.tuned else "__base__" for question in asked],
            max_new_tokens=self.max_tokens,
            do_sample=False,
        )
        return [self._until_stop(row[longest:].tolist()) for row in out]

    def _until_stop(self, tokens: list[int]) -> Tokens:
        end = next((at + 1 for at, token in enumerate(tokens) if token in self.stops), len(tokens))
        return tuple(tokens[:end])


def diverging(system: str, alone: list[Tokens], together: list[Tokens]) -> Divergence:
    firsts = [
        next(at for at, (a, b) in enumerate(zip_longest(one, other)) if a != b)
        for one, other in zip(alone, together, strict=True)
        if one != other
    ]
    return Divergence(system, len(alone), len(firsts), sum(firsts) / len(firsts) if firsts else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/divergence-DTYPE.json")
    arguments = parser.parse_args()
    options = (arguments.dtype, arguments.batch, arguments.max_tokens)
    ours = Ours(*options)
    asked = questions(ours.renderer, arguments.prompts)
    found = []
    with Progress(transient=True) as progress:
        for system in (ours, Transformers(*options)):
            alone = list(progress.track(system.alone(asked), len(asked), description=f"{system.name}, alone"))
            together = list(progress.track(system.together(asked), len(asked), description=f"{system.name}, together"))
            found.append(diverging(system.name, alone, together))
    report(found, arguments)


def report(found: list[Divergence], arguments: argparse.Namespace) -> None:
    title = f"{arguments.dtype}: the same greedy request alone and in a batch of {arguments.batch}"
    table = Table("", "requests", "other text", "rate", "first difference", title=title)
    for row in found:
        first = "—" if row.first_difference is None else f"token {row.first_difference:.0f} on average"
        table.add_row(row.system, str(row.requests), str(row.differing), f"{row.rate:.1%}", first)
    Console().print(table)
    figures: dict[str, Any] = {
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "max_tokens": arguments.max_tokens,
        "figures": [
            {
                "system": row.system,
                "requests": row.requests,
                "differing": row.differing,
                "rate": row.rate,
                "first_difference": row.first_difference,
            }
            for row in found
        ],
    }
    print(f"written to {write_results(f'divergence-{arguments.dtype}', figures, arguments.json)}")


if __name__ == "__main__":
    main()
