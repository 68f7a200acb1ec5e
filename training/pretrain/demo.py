"""The hundred questions a visitor types first, and a model's answers to them. The questions were written without a look
at what the model is trained on, so that they say how it meets strangers; nobody trains on them."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.errors import Invalid
from training.pretrain.language import Language, language_of

QUESTIONS = Path(__file__).parent / "demo_questions.jsonl"
MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class Question:
    id: str
    language: Language
    question: str
    kind: str  # "translation": the answer may be in the other language


@dataclass(frozen=True)
class Answer:
    id: str  # of the question
    language: Language  # of the question
    kind: str
    question: str
    model: str
    answer: str
    ended: bool  # by itself: with the end of its turn, before the most tokens it may have
    answer_language: Language | None


def read_questions(path: Path = QUESTIONS) -> list[Question]:
    return [Question(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def answers_of(
    path: Path,
    questions: Sequence[Question],
    *,
    name: str,
    seed: int,
    device: str,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[Answer]:
    """The answers of the model in `path`, sampled as its own generation_config says. The dice of a question depend on
    the seed and the question alone."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
    ends = model.generation_config.eos_token_id
    stops = set(ends) if isinstance(ends, list) else {ends}
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.question}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        torch.manual_seed(zlib.crc32(f"{seed}/{question.id}".encode()))
        tokens = model.generate(**prompt, max_new_tokens=max_new_tokens)[0, prompt["input_ids"].shape[1] :].tolist()
        said = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        yield Answer(
            question.id,
            question.language,
            question.kind,
            question.question,
            name,
            said,
            tokens[-1] in stops,
            language_of(said),
        )


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    write_lines([asdict(answer) for answer in answers], path)


def read_answers(path: Path) -> list[Answer]:
    return [Answer(**row) for row in read_lines(path)]


def ended(answers: Sequence[Answer]) -> float:
    """Share that stopped by itself."""
    return share([answer.ended for answer in answers])


def in_language(answers: Sequence[Answer]) -> float:
    """Share in the language of the question, of answers that are in one and are not asked to be in the other."""
    asked = [answer for answer in answers if answer.answer_language and answer.kind != "translation"]
    return share([answer.answer_language == answer.language for answer in asked])


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


def markdown_page(answers: Sequence[Answer]) -> str:
    """Every question and answer in full."""
    rows = [f"| {cell(a.question)} | {cell(a.answer)}{'' if a.ended else ' …'} |" for a in answers]
    title = f"# {answers[0].model}: answers to the demo questions\n"
    note = "As sampled, none left out. “…” at the end: cut at the most tokens an answer may have.\n"
    return "\n".join([title, note, "| question | answer |", "|---|---|", *rows]) + "\n"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table, where nothing in it is markup."""
    return re.sub(r"([\\`*_|<>\[\]$~])", r"\\\1", text).replace("\n", "<br>")


def write_lines(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises Invalid with the line where one is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise Invalid(f"{path}:{number}: this line is no JSON object; one object a line is expected")
        rows.append(row)
    return rows
