"""How the bundled base is judged: bits per byte, the n-gram beside it, the demo questions, blind readers."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM
from typer.testing import CliRunner

from adapters.errors import Invalid
from tests.pretraining import CONTEXT, SHAPE, tokenizer_of, write_documents
from training.pretrain.__main__ import cli
from training.pretrain.bits import bits_per_byte
from training.pretrain.bits_table import MEAN, NGRAM
from training.pretrain.blind import agreement, judge, read_reader, sheet
from training.pretrain.corpus import Document, is_held_out
from training.pretrain.demo import Answer, Question, answers_of, markdown_page, read_questions
from training.pretrain.language import language_of
from training.pretrain.ngram import ROLES, START, WRITABLE, NGram, symbols_of
from training.pretrain.tokenizer import END_OF_TEXT, save_tokenizer
from training.pretrain.train import build_model

DOCUMENTS: list[Document] = [
    {"text": "今天天气很好，我们去公园走走吧。今天天气不好，我们不去公园。"},
    {"text": "The sea is calm today. The sea is not calm at night, and the night is long."},
    {"messages": [{"role": "user", "content": "Is it cold?"}, {"role": "assistant", "content": "不冷, thank you."}]},
    {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，今天好吗？"}]},
]
TOKENIZER = tokenizer_of(DOCUMENTS)


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    model = build_model(SHAPE, TOKENIZER, CONTEXT).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)  # so that guesses are far from even
    return model


@pytest.fixture(scope="module")
def saved(model: Qwen3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    model.generation_config.update(do_sample=True, temperature=5.0, eos_token_id=TOKENIZER.eos_token_id)
    model.save_pretrained(directory)
    save_tokenizer(TOKENIZER, directory)
    return directory


# Bits per byte


@torch.inference_mode()
def bits_of(model: Qwen3ForCausalLM, context: list[int], token: int) -> float:
    return -float(model(input_ids=torch.tensor([context])).logits[0, -1].log_softmax(-1)[token]) / math.log(2)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_bits_per_byte_of_a_text_are_those_of_its_tokens_one_by_one(model: Qwen3ForCausalLM) -> None:
    text = DOCUMENTS[0]["text"]
    tokens = [TOKENIZER.convert_tokens_to_ids(END_OF_TEXT), *ids(text)]
    by_hand = sum(bits_of(model, tokens[:at], tokens[at]) for at in range(1, len(tokens)))
    assert bits_per_byte(model, TOKENIZER, [DOCUMENTS[0]]) == pytest.approx(by_hand / len(text.encode()), rel=1e-4)


def test_bits_per_byte_of_a_chat_count_what_is_said_and_no_marks(model: Qwen3ForCausalLM) -> None:
    asked, said = "Is it cold?", "不冷, thank you."
    tokens, by_hand = [], 0.0
    for role, content in (("user", asked), ("assistant", said)):
        tokens += ids(f"<|im_start|>{role}\n")
        for token in ids(content):
            by_hand += bits_of(model, tokens, token)
            tokens.append(token)
        tokens += ids("<|im_end|>\n")
    size = len((asked + said).encode())
    assert bits_per_byte(model, TOKENIZER, [DOCUMENTS[2]]) == pytest.approx(by_hand / size, rel=1e-4)


def test_a_long_document_is_read_in_windows_each_token_once(model: Qwen3ForCausalLM) -> None:
    text = DOCUMENTS[1]["text"] * 3
    tokens = [TOKENIZER.convert_tokens_to_ids(END_OF_TEXT), *ids(text)]
    window, by_hand = 16, 0.0
    assert len(tokens) > 3 * window
    for at in range(1, len(tokens)):
        first = max(0, math.ceil((at - window + 1) / 8) * 8)  # of the first window that reaches the token
        by_hand += bits_of(model, tokens[first:at], tokens[at])
    found = bits_per_byte(model, TOKENIZER, [{"text": text}], window=window)
    assert found == pytest.approx(by_hand / len(text.encode()), rel=1e-4)


def test_a_document_that_says_nothing_costs_nothing(model: Qwen3ForCausalLM) -> None:
    silent: Document = {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]}
    with_them = bits_per_byte(model, TOKENIZER, [{"text": ""}, DOCUMENTS[0], silent])
    assert with_them == bits_per_byte(model, TOKENIZER, [DOCUMENTS[0]])


# The n-gram


def after(ngram: NGram, context: list[int], symbols: list[int]) -> np.ndarray:
    """The chance of each symbol after the context."""
    rows = np.array([[*context, symbol] for symbol in symbols], dtype=np.int64)
    return ngram.probabilities(rows.ravel()).reshape(rows.shape)[:, -1]


@pytest.mark.parametrize(
    "context",
    [[START] * 4, [START] * 3 + [ROLES["assistant"]], [ord(c) for c in "今天天气"], [ord(c) for c in "气☃the"]],
    ids=["at the start", "at a turn", "seen", "never seen"],
)
def test_the_chances_of_all_characters_sum_to_one(context: list[int]) -> None:
    ngram = NGram.train(DOCUMENTS)
    seen = sorted({ord(c) for d in DOCUMENTS for c in json.dumps(d, ensure_ascii=False)})
    unseen = [ord("☃"), 0x1F40C]
    chances = after(ngram, context, seen + unseen)
    assert (chances > 0).all()
    assert chances[-1] == chances[-2]  # so it is the same for every character that the text does not have
    assert chances[: len(seen)].sum() + (WRITABLE - len(seen)) * chances[-1] == pytest.approx(1, abs=1e-12)


def test_the_ngram_is_kneser_ney_as_written_down() -> None:
    """Against the formula with dictionaries, on a text with enough counts to estimate the discounts."""
    rng = random.Random(1)
    documents: list[Document] = [{"text": "".join(rng.choices("abcdefgh", range(8, 0, -1), k=9))} for _ in range(60)]
    order = 3
    sequences = [[START] * (order - 1) + [ord(c) for c in document["text"]] for document in documents]
    grams = {
        length: Counter(
            tuple(sequence[end - length : end])
            for sequence in sequences
            for end in range(order, len(sequence) + 1)  # those that end in a character
        )
        for length in range(1, order + 1)
    }
    counts = {order: grams[order]} | {n: Counter(gram[1:] for gram in grams[n + 1]) for n in range(1, order)}

    def discount(length: int, count: int) -> float:
        n = [sum(c == wanted for c in counts[length].values()) for wanted in range(5)]
        if not (n[1] and n[2] and n[3]):
            return (0.5, 1.0, 1.5)[min(count, 3) - 1]
        taken = [j - (j + 1) * n[1] / (n[1] + 2 * n[2]) * n[j + 1] / n[j] for j in (1, 2, 3)]
        return taken[min(count, 3) - 1] if min(taken) > 0 else (0.5, 1.0, 1.5)[min(count, 3) - 1]

    @cache
    def chance(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / WRITABLE
        length = len(gram)
        following = {g: c for g, c in counts[length].items() if g[:-1] == gram[:-1]}
        if not following:
            return chance(gram[1:])
        total = sum(following.values())
        left = sum(discount(length, c) for c in following.values()) / total
        count = following.get(gram, 0)
        return (count - discount(length, count) if count else 0) / total + left * chance(gram[1:])

    ngram = NGram.train(documents, order)
    for context in ([START, START], [START, ord("c")], [ord("a"), ord("b")], [ord("h"), ord("h")]):
        expected = [chance((*context, symbol)) for symbol in range(ord("a"), ord("j"))]
        assert after(ngram, context, list(range(ord("a"), ord("j")))) == pytest.approx(expected, rel=1e-9)


def test_ngram_bits_per_byte_are_finite_and_lower_where_it_has_read() -> None:
    ngram = NGram.train(DOCUMENTS[:1] + DOCUMENTS[3:])
    read, unread = ngram.bits_per_byte(DOCUMENTS[:1]), ngram.bits_per_byte([{"text": "☃🐌 ؟"}])
    assert read < 1 < unread < 20
    symbols = symbols_of([DOCUMENTS[3]])
    by_hand = -np.log2(ngram.probabilities(symbols)[symbols < START]).sum()
    assert ngram.bits_per_byte([DOCUMENTS[3]]) == pytest.approx(by_hand / len("你好你好，今天好吗？".encode()))


def test_the_table_has_every_file_and_the_mean_of_the_dialogues(saved: Path, tmp_path: Path) -> None:
    for name in ("kdconv", "smilechat", "self_dialogue_en", "topical_chat_en", "notes"):
        notes: list[Document] = [{"text": f"{name} says {number}, 今天好吗"} for number in range(150)]
        assert any(map(is_held_out, notes))
        write_documents(notes, tmp_path / "data" / f"{name}.jsonl.gz")
    nothing: list[Document] = [document for document in DOCUMENTS if not is_held_out(document)]
    write_documents(nothing, tmp_path / "data" / "nothing.jsonl")
    out = tmp_path / "bits.json"
    arguments = ["bits", str(saved), "--data", str(tmp_path / "data"), "--bytes", "40", "--json", str(out)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and MEAN in result.output
    figures = json.loads(out.read_text())
    assert set(figures["bytes"]) == {"kdconv", "smilechat", "self_dialogue_en", "topical_chat_en", "notes"}
    for name in (NGRAM, "tiny"):
        bits = figures["bits_per_byte"][name]
        four = [bits[file] for file in ("kdconv", "smilechat", "self_dialogue_en", "topical_chat_en")]
        assert bits[MEAN] == pytest.approx(sum(four) / 4)


# The demo questions


def test_a_hundred_questions_half_of_them_chinese() -> None:
    questions = read_questions()
    assert Counter(question.language for question in questions) == {"zh": 50, "en": 50}
    assert len({question.id for question in questions}) == len({question.question for question in questions}) == 100
    assert all(language_of(question.question) == question.language for question in questions)


def test_answers_depend_on_seed_and_question_alone_and_say_whether_they_ended(saved: Path) -> None:
    questions = [Question("q1", "en", "Is it cold?", "weather"), Question("q2", "zh", "你好", "greeting")]

    def answers(asked: list[Question], seed: int = 1) -> list[Answer]:
        return list(answers_of(saved, asked, name="tiny", seed=seed, device="cpu", max_new_tokens=12))

    both = answers(questions)
    assert answers(questions[1:]) == both[1:]
    assert answers(questions, seed=2) != both
    model = Qwen3ForCausalLM.from_pretrained(saved)
    with torch.no_grad():  # it can say one thing only: the end of its turn
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
    model.generation_config.update(suppress_tokens=[n for n in range(len(TOKENIZER)) if n != TOKENIZER.eos_token_id])
    model.save_pretrained(saved.parent / "silent")
    save_tokenizer(TOKENIZER, saved.parent / "silent")
    silent = list(answers_of(saved.parent / "silent", questions, name="s", seed=1, device="cpu", max_new_tokens=12))
    assert [(answer.answer, answer.ended, answer.answer_language) for answer in silent] == [("", True, None)] * 2
    assert not any(answer.ended for answer in both)


def test_markdown_shows_answers_as_they_are() -> None:
    answer = replace(answered("q1", "a"), question="a|b?", answer="1 < 2 * 3\n*ok*", ended=False)
    assert markdown_page([answer]).splitlines()[-1] == r"| a\|b? | 1 \< 2 \* 3<br>\*ok\* … |"


@pytest.mark.parametrize(
    ("text", "language"),
    [("我是变脸 mini。", "zh"), ("I said 你好 to her.", "en"), ("2 + 2 = 4", None), ("", None), ("英文是：hi", "zh")],
)
def test_language_is_what_most_of_the_words_are_in(text: str, language: str | None) -> None:
    assert language_of(text) == language


# Blind readers


def answered(question: str, model: str, answer: str = "Fine.", *, kind: str = "greeting", ended: bool = True) -> Answer:
    return Answer(question, "en", kind, f"Question {question}?", model, answer, ended, language_of(answer))


def test_a_sheet_has_every_answer_once_and_no_names() -> None:
    one = [answered(f"q{n}", "old", f"Old {n}.") for n in range(20)]
    other = [answered(f"q{n}", "new", f"New {n}.") for n in range(20)]
    rows, key = sheet(one, other, seed=1)
    assert {frozenset(row) for row in rows} == {frozenset({"id", "language", "question", "answer"})}
    models = {row["id"]: row["of"]["model"] for row in key}
    for row in rows:
        assert row["answer"].lower().startswith(models[row["id"]])
    assert sorted(row["answer"] for row in rows) == sorted(a.answer for a in (*one, *other))
    order = [models[row["id"]] for row in rows]
    assert order != sorted(order) and order != sorted(order, reverse=True)
    assert sheet(one, other, seed=1) == (rows, key)
    assert sheet(one, other, seed=2)[0] != rows


def test_a_sheet_is_of_two_models_with_the_same_questions() -> None:
    with pytest.raises(Invalid, match="different questions"):
        sheet([answered("q1", "a")], [answered("q2", "b")], seed=1)
    with pytest.raises(Invalid, match="--name"):
        sheet([answered("q1", "a")], [answered("q1", "a")], seed=1)


def test_kappa_is_agreement_beyond_chance() -> None:
    # 25 answers of 50 are wanted by one reader, 30 by the other, 20 by both: 70 % agree, 50 % by chance.
    verdicts = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    one = {str(n): {"fluent": a} for n, (a, _) in enumerate(verdicts)}
    other = {str(n): {"fluent": b} for n, (_, b) in enumerate(verdicts)}
    assert agreement(one, other, "fluent") == pytest.approx(0.4)
    assert agreement(one, one, "fluent") == 1
    always = {id_: {"fluent": True} for id_ in one}
    assert agreement(always, always, "fluent") is None


@pytest.fixture
def judged_files(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Sheet and key of four answers a model, and a reader who finds those of "new" fluent and half on topic."""
    old = [
        answered("q1", "old"),
        answered("q2", "old", "不好", ended=False),
        answered("q3", "old", "42"),
        answered("q4", "old", "谢谢", kind="translation"),
    ]
    new = [answered(f"q{n}", "new", ended=n != 4) for n in range(1, 5)]
    for name, answers in (("old", old), ("new", new)):
        write_documents([vars(answer) for answer in answers], tmp_path / f"{name}.jsonl")
    out = tmp_path / "sheet.jsonl"
    made = CliRunner().invoke(
        cli, ["blind", *(str(tmp_path / f"{name}.jsonl") for name in ("old", "new")), "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    key = tmp_path / "sheet.key.jsonl"
    keys = [json.loads(line) for line in key.read_text().splitlines()]
    verdicts = [
        {
            "id": row["id"],
            "fluent": row["of"]["model"] == "new",
            "on_topic": row["of"]["model"] == "new" and row["of"]["id"] in ("q1", "q2"),
        }
        for row in keys
    ]
    write_documents(verdicts, tmp_path / "reader.jsonl")
    yield out, key, tmp_path / "reader.jsonl"


def test_shares_are_counted_by_model(judged_files: tuple[Path, Path, Path]) -> None:
    rows, key = ([json.loads(line) for line in path.read_text().splitlines()] for path in judged_files[:2])
    new, old = judge(rows, key, {"reader": read_reader(judged_files[2], rows)})
    assert (new.model, new.judged, new.ended) == ("new", {"reader": {"fluent": 1.0, "on_topic": 0.5}}, 0.75)
    assert (old.model, old.judged, old.ended) == ("old", {"reader": {"fluent": 0.0, "on_topic": 0.0}}, 0.75)
    # Of old's four, "42" is in no language and the translation may be in another one.
    assert (new.in_language, old.in_language) == (1.0, 0.5)


def test_judged_prints_shares_and_agreement(judged_files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    paths = list(map(str, judged_files))
    second = tmp_path / "second.jsonl"
    second.write_text(judged_files[2].read_text())
    out = tmp_path / "judged.json"
    result = CliRunner().invoke(cli, ["judged", *paths, str(second), "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "fluent: reader and second: 1.00" in result.output
    assert [row["model"] for row in json.loads(out.read_text())["models"]] == ["new", "old"]
    alike = CliRunner().invoke(cli, ["judged", *paths, paths[2]])
    assert isinstance(alike.exception, Invalid) and "same name" in str(alike.exception)


def test_a_reader_who_left_a_row_out_is_told_which(judged_files: tuple[Path, Path, Path]) -> None:
    rows = [json.loads(line) for line in judged_files[0].read_text().splitlines()]
    lines = judged_files[2].read_text().splitlines()
    judged_files[2].write_text("\n".join(lines[1:]))
    with pytest.raises(Invalid, match="1 of 8 rows, the first being 001"):
        read_reader(judged_files[2], rows)
    judged_files[2].write_text("\n".join([lines[0].replace("true", '"yes"').replace("false", '"no"'), *lines[1:]]))
    with pytest.raises(Invalid, match="'fluent' of row 001 must be true or false"):
        read_reader(judged_files[2], rows)
