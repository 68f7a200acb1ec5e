"""What a data set becomes: tokens that equal the served prompt, answers that end, and a report that hides nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from tests.tiny import TOKENIZER
from training.dataset import NOT_LEARNED, Dataset, load_dataset


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return ChatRenderer(tokenizer, frozenset([tokenizer.eos_token_id]))


def load(directory: Path, rows: list[dict[str, Any]], renderer: ChatRenderer, **options: Any) -> Dataset:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return load_dataset([path], renderer, **{"max_length": 128, **options})


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


def test_the_tokens_before_the_answer_are_the_served_prompt(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("你是谁？", "俺老孙是也！", system="你是孙悟空。")], renderer)
    (learned,) = dataset.rows
    prompt = renderer.prompt_ids(
        [{"role": "system", "content": "你是孙悟空。"}, {"role": "user", "content": "你是谁？"}]
    )
    start = len(prompt)
    assert learned.input_ids[:start] == prompt
    assert learned.labels[:start] == [NOT_LEARNED] * start
    assert learned.labels[start:] == learned.input_ids[start:]


def test_the_answer_is_learned_up_to_and_with_its_end(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("Hi", "Ho", history=[["a", "b"]])], renderer)
    (learned,) = dataset.rows
    said = renderer.tokenizer.decode([label for label in learned.labels if label != NOT_LEARNED])
    assert said == "b<|im_end|>Ho<|im_end|>"
    assert dataset.report.end_of_turn_share == 1.0


def test_the_given_system_prompt_goes_to_rows_that_have_none(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("a", "b"), row("c", "d", system="Mine.")], renderer, system="Yours.")
    texts = [renderer.tokenizer.decode(learned.input_ids) for learned in dataset.rows]
    assert "Yours." in texts[0]
    assert "Mine." in texts[1] and "Yours." not in texts[1]
    assert dataset.report.system_prompt == "Yours."


def test_a_system_prompt_that_all_rows_share_is_the_adapters(tmp_path: Path, renderer: ChatRenderer) -> None:
    shared = [row(str(n), "b", system="You are Wukong.") for n in range(3)]
    assert load(tmp_path, shared, renderer).report.system_prompt == "You are Wukong."
    assert load(tmp_path, [*shared, row("a", "b")], renderer).report.system_prompt is None


def test_a_row_too_long_loses_whole_turns_never_half_an_answer(tmp_path: Path, renderer: ChatRenderer) -> None:
    turns = row("Hi", "Ho", history=[["first", "one"], ["second", "word " * 200]])
    dataset = load(tmp_path, [turns], renderer, max_length=64)
    (learned,) = dataset.rows
    assert len(learned.input_ids) <= 64
    assert renderer.tokenizer.decode([label for label in learned.labels if label != NOT_LEARNED]) == "one<|im_end|>"
    assert dataset.report.shortened == 1


def test_a_row_whose_first_answer_does_not_fit_is_left_out_and_listed(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("a", "b"), row("Hi", "word " * 200)], renderer, max_length=64)
    assert len(dataset.rows) == 1
    (long,) = dataset.report.too_long
    assert long.place.line == 2
    assert "max-length 64" in long.reason
    with pytest.raises(Invalid, match=r"data\.jsonl:2: .* tokens"):
        dataset.report.refuse(strict=True)


def test_a_control_token_in_a_text_is_a_bad_row(tmp_path: Path, renderer: ChatRenderer) -> None:
    report = load(tmp_path, [row("a", "half<|im_end|>lost")], renderer).report
    assert "<|im_end|>" in report.bad[0].reason


def test_more_than_five_percent_of_bad_rows_are_refused(tmp_path: Path, renderer: ChatRenderer) -> None:
    good = [row(f"q{n}", "a") for n in range(95)]
    load(tmp_path, [*good, *[{"instruction": "x"}] * 5], renderer).report.refuse(strict=False)
    with pytest.raises(Invalid, match=r"6 of 101 rows .* more than 5%.*data\.jsonl:96: output: is missing"):
        load(tmp_path, [*good, *[{"instruction": "x"}] * 6], renderer).report.refuse(strict=False)


def test_strict_refuses_a_single_bad_row(tmp_path: Path, renderer: ChatRenderer) -> None:
    good = [row(f"q{n}", "a") for n in range(95)]
    with pytest.raises(Invalid, match=r"data\.jsonl:96: output: is empty"):
        load(tmp_path, [*good, row("x", "")], renderer).report.refuse(strict=True)


def test_preferences_are_refused_with_the_objective_that_learns_from_them(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    with pytest.raises(Invalid, match="train on them with --objective dpo"):
        load(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], renderer)


def test_a_document_is_learned_whole_in_pieces_that_fit(tmp_path: Path, renderer: ChatRenderer) -> None:
    text = "word " * 100
    dataset = load(tmp_path, [{"text": text}], renderer, max_length=32)
    ids = [token for learned in dataset.rows for token in learned.input_ids]
    assert ids == [*renderer.encode(text), renderer.tokenizer.eos_token_id]
    assert all(learned.labels == learned.input_ids for learned in dataset.rows)
    assert dataset.report.good == 1


def test_the_split_follows_the_seed_and_keeps_equal_rows_together(tmp_path: Path, renderer: ChatRenderer) -> None:
    rows = [row(f"q{n % 25}", "a") for n in range(50)]
    dataset = load(tmp_path, rows, renderer)
    training, validation = dataset.split(0.2, seed=7)
    assert (training, validation) == dataset.split(0.2, seed=7)
    assert validation != dataset.split(0.2, seed=8)[1]
    assert len(validation) == 10 and len(training) == 40
    assert not {tuple(r.input_ids) for r in training} & {tuple(r.input_ids) for r in validation}
    assert dataset.report.duplicates == 25


def test_the_report_says_it_all_in_lines(tmp_path: Path, renderer: ChatRenderer) -> None:
    text = "\n".join(load(tmp_path, [row("a", "b"), row("a", "b"), row("c", "")], renderer).report.lines())
    assert "rows: 2 good, 1 bad (33.3%), 1 duplicates" in text
    assert "empty: 1 row with an empty question or answer" in text
    assert "data.jsonl:3: output: is empty" in text
    assert "end of turn learned in 100.0% of conversations" in text
