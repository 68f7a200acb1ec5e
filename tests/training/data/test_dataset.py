"""What a data set becomes: tokens that equal the served prompt, answers that end, and a report that hides nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from tests import templates, tiny
from tests.tiny import TOKENIZER
from training.data.dataset import NOT_LEARNED, Dataset, load_dataset, pieces_of
from training.data.formats import MAX_CHARACTERS


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
    (short,) = dataset.report.shortened
    assert short.place.line == 1 and "max-length 64" in short.reason


def test_a_row_whose_first_answer_does_not_fit_is_left_out_and_listed(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("a", "b"), row("Hi", "word " * 200)], renderer, max_length=64)
    assert len(dataset.rows) == 1
    (long,) = dataset.report.too_long
    assert long.place.line == 2
    assert "max-length 64" in long.reason
    with pytest.raises(Invalid, match=r"data\.jsonl:2: .* tokens"):
        dataset.report.refuse(strict=True)


def test_a_control_token_in_a_text_is_a_bad_row(tmp_path: Path, renderer: ChatRenderer) -> None:
    report = load(tmp_path, [row("a", "half<|im_end|>lost"), row("<|im_end|>?", "b")], renderer).report
    assert ["<|im_end|>" in bad.reason for bad in report.bad] == [True]
    assert (report.bad[0].place.line, report.bad[0].field) == (1, "output") and "leave the row out" in report.bad[
        0
    ].reason
    assert report.good == 1  # in what others say it is disarmed, as in serving


def test_a_control_token_is_found_wherever_the_model_would_write_it(tmp_path: Path, renderer: ChatRenderer) -> None:
    """In any of its turns, learned or not, and in tokens that have no role in the tokenizer."""
    asked = {"role": "user", "content": "a"}

    def said(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    odd = next(token for token in renderer.special_texts if token not in ("<|im_end|>",))
    rows = [[asked, said("b"), asked, said(f"c{odd}")], [asked, said("<|im_start|>") | {"weight": 0}, asked, said("d")]]
    report = load(tmp_path, [{"messages": turns} for turns in rows], renderer).report
    assert [bad.field for bad in report.bad] == ["messages[4]", "messages[2]"] and report.good == 0


def test_more_than_five_percent_of_bad_rows_are_refused(tmp_path: Path, renderer: ChatRenderer) -> None:
    good = [row(f"q{n}", "a") for n in range(95)]
    load(tmp_path, [*good, *[{"instruction": "x"}] * 5], renderer).report.refuse(strict=False)
    with pytest.raises(Invalid, match=r"6 of 101 rows .* more than 5%.*data\.jsonl:96: output: is missing"):
        load(tmp_path, [*good, *[{"instruction": "x"}] * 6], renderer).report.refuse(strict=False)


def test_strict_refuses_a_single_bad_row(tmp_path: Path, renderer: ChatRenderer) -> None:
    good = [row(f"q{n}", "a") for n in range(95)]
    with pytest.raises(Invalid, match=r"data\.jsonl:96: output: is empty"):
        load(tmp_path, [*good, row("x", "")], renderer).report.refuse(strict=True)


def test_preferences_are_refused_with_the_objective_they_are_for(tmp_path: Path, renderer: ChatRenderer) -> None:
    with pytest.raises(Invalid, match="--objective dpo"):
        load(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], renderer)


def test_documents_are_rows_of_their_own_that_end_with_an_end_of_text(tmp_path: Path, renderer: ChatRenderer) -> None:
    texts = ["word " * 50, "short", "最后一篇。"]
    dataset = load(tmp_path, [{"text": text} for text in texts], renderer, max_length=32)
    end = renderer.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for line, text in enumerate(texts, start=1):
        rows = [row for row in dataset.rows if row.place.line == line]
        assert [token for row in rows for token in row.input_ids] == [*renderer.encode(text), end]
        assert all(len(row.input_ids) == 32 for row in rows[:-1])
    assert all(row.labels == row.input_ids for row in dataset.rows)
    assert dataset.report.good == 3


def test_a_long_document_is_tokenized_in_pieces_that_end_with_lines(tmp_path: Path, renderer: ChatRenderer) -> None:
    text = "ab cd\n" * (MAX_CHARACTERS // 6 + 1000)
    assert [len(piece) for piece in pieces_of(text)] == [999_996, len(text) - 999_996]
    assert [len(piece) for piece in pieces_of("a" * (MAX_CHARACTERS + 1))] == [MAX_CHARACTERS, 1]
    dataset = load(tmp_path, [{"text": text}], renderer, max_length=10**9)
    assert renderer.tokenizer.decode(dataset.rows[0].input_ids) == text + "<|endoftext|>"


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


TOOLS = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}]
CALLING = {
    "conversations": [
        {"from": "human", "value": "rain?"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ],
    "tools": TOOLS,
}


def renderer_with(template: str) -> ChatRenderer:
    tokenizer = tiny.tokenizer_with(template)
    return ChatRenderer(tokenizer, frozenset([tokenizer.eos_token_id]))


def test_tools_are_learned_where_the_template_has_them_and_refused_where_not(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    report = load(tmp_path, [CALLING], renderer).report
    assert report.bad[0].reason.startswith("uses tools, and the base's chat template has no place for them")
    able = renderer_with(templates.HERMES)
    dataset = load(tmp_path, [CALLING], able, max_length=512)
    assert (dataset.report.good, dataset.report.with_tools) == (1, 1)
    learned = able.tokenizer.decode([label for label in dataset.rows[0].labels if label != NOT_LEARNED])
    assert '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>' in learned
    assert learned.endswith("Yes.<|im_end|>")


def test_thoughts_are_learned_where_the_template_has_them_and_said_to_be_left_out_where_not(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    rows = [row("q", "<think>\nwhy\n</think>\n\na"), row("q", "b")]

    def learned(dataset: Dataset, renderer: ChatRenderer) -> list[str]:
        return [
            renderer.tokenizer.decode([label for label in one.labels if label != NOT_LEARNED]) for one in dataset.rows
        ]

    plain = load(tmp_path, rows, renderer)
    assert learned(plain, renderer) == ["a<|im_end|>", "b<|im_end|>"]
    assert "thoughts of 1 row are left out" in "\n".join(plain.report.lines())
    able = renderer_with(templates.SWITCHED)
    dataset = load(tmp_path, rows, able)
    assert learned(dataset, able) == ["<think>\nwhy\n</think>\n\na<|im_end|>", "b<|im_end|>"]
    assert dataset.report.with_reasoning == 1 and not dataset.report.thinking
    assert load(tmp_path, rows[:1], able).report.thinking  # the adapter will be served thinking
    assert learned(load(tmp_path, rows, able, thinking=False), able) == ["a<|im_end|>", "b<|im_end|>"]
    with pytest.raises(Invalid, match="no place for thoughts") as caught:
        load(tmp_path, rows, renderer, thinking=True)
    assert caught.value.param == "thinking"


def test_replies_that_need_a_row_each_are_never_split(tmp_path: Path) -> None:
    able = renderer_with(templates.SWITCHED)
    history = [[f"<q{n}>", "<think>\nwhy\n</think>\n\nyes"] for n in range(2)]
    dataset = load(tmp_path, [row(f"last {n}", "no", history=history) for n in range(10)], able)
    assert len(dataset.rows) == 30 and dataset.report.good == 10
    assert dataset.report.duplicates == 0  # though all begin alike
    training, validation = dataset.split(0.3, seed=1)
    assert len(validation) == 9
    assert not {one.place for one in training} & {one.place for one in validation}


def test_masked_history_learns_the_last_answer_only(tmp_path: Path, renderer: ChatRenderer) -> None:
    dataset = load(tmp_path, [row("c", "d", history=[["a", "b"]])], renderer, mask_history=True)
    assert renderer.tokenizer.decode([label for label in dataset.rows[0].labels if label != NOT_LEARNED]) == (
        "d<|im_end|>"
    )


def test_answers_without_an_end_of_turn_are_refused(tmp_path: Path) -> None:
    endless = renderer_with(
        "{%- for m in messages -%}{{ m.role + ': ' + m.content + '\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}"
    )
    report = load(tmp_path, [row("a", "b")], endless).report
    assert report.end_of_turn_share == 0
    with pytest.raises(Invalid, match=r"1 conversation of 1 would be learned without an end of turn.*data\.jsonl:1"):
        report.refuse(strict=False)


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps(row(f"{path.stem} {n}", "yes")) + "\n" for n in range(count)))
    return path


def test_weights_are_the_shares_of_the_training_rows(tmp_path: Path, renderer: ChatRenderer) -> None:
    files = [write_rows(tmp_path / "many.jsonl", 80), write_rows(tmp_path / "few.jsonl", 20)]
    dataset = load_dataset(files, renderer, max_length=64, weights=(1, 3))
    training, validation = dataset.split(0.1, seed=3)
    assert len(training) + len(validation) == 100
    from_few = [one for one in training if one.place.path.endswith("few.jsonl")]
    assert len(from_few) == round(0.75 * len(training))
    times = Counter(one.place for one in from_few)
    assert max(times.values()) - min(times.values()) <= 1  # none comes again before all have come
    assert not {one.place for one in training} & {one.place for one in validation}
    assert training == dataset.split(0.1, seed=3)[0] != dataset.split(0.1, seed=4)[0]


def test_only_the_first_rows_of_each_file_when_asked(tmp_path: Path, renderer: ChatRenderer) -> None:
    files = [write_rows(tmp_path / "a.jsonl", 5), write_rows(tmp_path / "b.jsonl", 2)]
    rows = load_dataset(files, renderer, max_length=64, max_samples=3).rows
    assert [(Path(one.place.path).stem, one.place.line) for one in rows] == [
        *[("a", n) for n in (1, 2, 3)],
        *[("b", n) for n in (1, 2)],
    ]
