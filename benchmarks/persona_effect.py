"""Does the face change? A style classifier learns each shipped persona's lines against the base's answers to the same
questions, and then has to tell the persona's answers from the base's to the hundred demo questions, which come from
neither's data. Both are asked of a running server:

    bianlian serve --no-ui &
    python -m benchmarks.persona_effect --url http://127.0.0.1:7860 --markdown docs/persona-answers.md
"""

import argparse
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.results import write_results
from benchmarks.style import StyleClassifier, wilson
from training.personas_check import EXPECTED, read_examples
from training.pretrain.demo import cell, read_questions
from training.pretrain.language import language_of
from training.samples import sample_config, sample_names

SEED = 1
SIDE_BY_SIDE = 10


class Asker:
    """Questions to one server, eight at a time, each with a seed of its own that is the same for every model."""

    def __init__(self, url: str, max_tokens: int, api_key: str | None):
        self.max_tokens = max_tokens
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=f"{url.rstrip('/')}/v1", headers=headers, timeout=300)

    def models(self) -> list[str]:
        return [model["id"] for model in self._checked(self.http.get("/models"))["data"]]

    def answers(self, model: str, questions: Sequence[str], progress: Progress) -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            asked = pool.map(partial(self._answer, model), questions)
            return list(progress.track(asked, len(questions), description=f"asking {model}"))

    def _answer(self, model: str, question: str) -> str:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens,
            "seed": zlib.crc32(f"{SEED}/{question}".encode()) >> 1,
        }
        return str(self._checked(self.http.post("/chat/completions", json=body))["choices"][0]["message"]["content"])

    def _checked(self, response: httpx.Response) -> dict:
        if response.is_error:
            raise SystemExit(f"{response.request.url}: {response.status_code} {response.text}")
        return response.json()


@dataclass(frozen=True)
class Line:
    question: str
    reply: str

    @property
    def learned(self) -> bool:
        """Half of the lines teach the classifier; the other half show that it has learned the manner."""
        return zlib.crc32(self.reply.encode()) % 2 == 0


@dataclass(frozen=True)
class Effect:
    """Counts of answers. `lines` are the persona's own, which the classifier had not seen, and the base's answers to
    the same questions; `verbatim` are tuned answers that stand word for word in the persona's data."""

    persona: str
    questions: int
    right: int  # of two answers a question
    lines: int
    lines_right: int
    verbatim: int

    @property
    def accuracy(self) -> float:
        return self.right / (2 * self.questions)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, 2 * self.questions)


@dataclass(frozen=True)
class SideBySide:
    title: str
    rows: list[tuple[str, str, str]]  # question, base, persona


def lines_of(persona: str) -> list[Line]:
    """Opening question and reply of each row, in the persona's language, each reply once."""
    found: dict[str, Line] = {}
    for path in dict.fromkeys(sample_config(persona).data):
        for example in read_examples(path):
            said = [message["content"] for message in example.messages if message["role"] != "system"]
            if speaks(persona, said[0]):
                found.setdefault(said[1], Line(said[0], said[1]))
    return list(found.values())


def speaks(persona: str, question: str) -> bool:
    """Whether the question is in a language the persona answers in, and so the base too."""
    promised = EXPECTED[sample_config(persona).data[0].name].language
    return promised in ("question's", language_of(question))


def effect(
    persona: str, base: str, asker: Asker, max_lines: int | None, progress: Progress
) -> tuple[Effect, SideBySide]:
    # By a hash, so that a limit takes lines from the whole of the file.
    lines = sorted(lines_of(persona), key=lambda line: zlib.crc32(line.question.encode()))[:max_lines]
    by_base = asker.answers(base, [line.question for line in lines], progress)
    learned = [(line.reply, other) for line, other in zip(lines, by_base, strict=True) if line.learned]
    unseen = [(line.reply, other) for line, other in zip(lines, by_base, strict=True) if not line.learned]
    classifier = StyleClassifier(*zip(*learned, strict=True))

    card = sample_config(persona).card
    demo = [question.question for question in read_questions() if speaks(persona, question.question)]
    asked = [*card.samples, *(question for question in demo if question not in card.samples)]
    plain = dict(zip(asked, asker.answers(base, asked, progress), strict=True))
    tuned = dict(zip(asked, asker.answers(persona, asked, progress), strict=True))
    in_data = {line.reply for line in lines_of(persona)}
    found = Effect(
        persona,
        questions=len(demo),
        right=classifier.told_right([tuned[q] for q in demo], [plain[q] for q in demo]),
        lines=2 * len(unseen),
        lines_right=classifier.told_right(*zip(*unseen, strict=True)),
        verbatim=sum(tuned[q] in in_data for q in demo),
    )
    # The card's samples, then demo questions from the first to the last.
    more = asked[len(card.samples) :]
    shown = [*card.samples, *more[:: len(more) // (SIDE_BY_SIDE - len(card.samples))]][:SIDE_BY_SIDE]
    return found, SideBySide(card.title, [(q, plain[q], tuned[q]) for q in shown])


def markdown(pages: Sequence[SideBySide]) -> str:
    parts = ["# Personas beside the base\n\nThe same questions and the same dice; sampling as the base proposes it.\n"]
    for page in pages:
        parts.append(f"\n## {page.title}\n\n| question | base | persona |\n|---|---|---|\n")
        parts += [f"| {cell(question)} | {cell(base)} | {cell(persona)} |\n" for question, base, persona in page.rows]
    return "".join(parts)


def report(effects: Sequence[Effect]) -> None:
    table = Table(title="a classifier tells persona from base by their answers to the demo questions")
    for column in ("persona", "answers", "told right", "95 % interval", "unseen lines told right", "verbatim"):
        table.add_column(column, justify="left" if column == "persona" else "right")
    for found in effects:
        low, high = found.interval
        table.add_row(
            found.persona,
            str(2 * found.questions),
            f"{found.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{found.lines_right / found.lines:.1%} of {found.lines}",
            f"{found.verbatim / found.questions:.0%}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("persona", nargs="*", help="default: all that the package has data of")
    parser.add_argument("--url", required=True, help="of a running server, without /v1")
    parser.add_argument("--api-key")
    parser.add_argument("--base", default="bianlian-mini", help="what the server calls the base")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--lines", type=int, help="of a persona's data, at most: half of them to learn; default: all")
    parser.add_argument("--markdown", type=Path, help="file for ten questions a persona, side by side")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/persona-effect.json")
    arguments = parser.parse_args()
    asker = Asker(arguments.url, arguments.max_tokens, arguments.api_key)
    personas = arguments.persona or sample_names()
    if missing := [name for name in (arguments.base, *personas) if name not in asker.models()]:
        parser.error(
            f"the server has no {', '.join(missing)}; name those it has, or train them: python -m training NAME"
        )
    effects, pages = [], []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for persona in personas:
            found, page = effect(persona, arguments.base, asker, arguments.lines, progress)
            effects.append(found)
            pages.append(page)
    report(effects)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(pages), encoding="utf-8")
    figures = [asdict(found) | {"accuracy": found.accuracy, "interval_95": list(found.interval)} for found in effects]
    print(f"written to {write_results('persona-effect', {'base': arguments.base, 'figures': figures}, arguments.json)}")


if __name__ == "__main__":
    main()
