"""Preferences as tokens: the served prompt, whole answers, and cuts by turns."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.errors import Invalid
from adapters.renderer import ChatRenderer
from tests.tiny import TOKENIZER
from training.data.preferences import PreferenceDataset, load_preferences


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return ChatRenderer(tokenizer, frozenset([tokenizer.eos_token_id]))


def pairs(path: Path, renderer: ChatRenderer) -> PreferenceDataset:
    return load_preferences([path], renderer, objective="dpo", max_length=64)


def write(directory: Path, *rows: Any) -> Path:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


PAIR = {"prompt": "你是谁？", "chosen": "俺老孙！", "rejected": "我是助手。", "system": "你是孙悟空。"}


def test_a_pair_is_the_served_prompt_and_two_ended_answers(tmp_path: Path, renderer: ChatRenderer) -> None:
    found = pairs(write(tmp_path, PAIR), renderer)
    (row,) = found.rows
    prompt = [{"role": "system", "content": "你是孙悟空。"}, {"role": "user", "content": "你是谁？"}]
    assert row.prompt_ids == renderer.prompt_ids(prompt)  # type: ignore[arg-type]
    assert row.chosen_ids == renderer.encode("俺老孙！<|im_end|>")
    assert row.rejected_ids == renderer.encode("我是助手。<|im_end|>")
    assert found.report.system_prompt == "你是孙悟空。"
    assert found.report.end_of_turn_share == 1.0
    found.report.refuse(strict=True)


def test_a_pair_is_two_labelled_answers_and_a_labelled_answer_is_no_pair(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    rows = load_preferences([write(tmp_path, PAIR)], renderer, objective="kto", max_length=64).rows
    assert [(renderer.tokenizer.decode(row.answer.answer_ids), row.wanted) for row in rows] == [
        ("俺老孙！<|im_end|>", True),
        ("我是助手。<|im_end|>", False),
    ]
    labelled = write(tmp_path, {"prompt": "a", "completion": "b", "label": False})
    with pytest.raises(Invalid, match=r"data\.jsonl:1: objective dpo compares two answers.*--objective kto"):
        pairs(labelled, renderer)
    with pytest.raises(Invalid, match="all of these have the same label"):
        load_preferences([labelled], renderer, objective="kto", max_length=64)


def test_chat_rows_are_refused_with_the_objective_they_are_for(tmp_path: Path, renderer: ChatRenderer) -> None:
    with pytest.raises(Invalid, match="learns from preferences, and these are alpaca rows; use --objective sft"):
        pairs(write(tmp_path, {"instruction": "a", "output": "b"}), renderer)


def test_a_long_prompt_loses_its_earliest_turns_and_keeps_its_system(tmp_path: Path, renderer: ChatRenderer) -> None:
    history = [["first " * 30, "one"], ["second", "two"]]
    path = write(tmp_path, PAIR | {"history": history})
    found = pairs(path, renderer)
    text = renderer.tokenizer.decode(found.rows[0].prompt_ids)
    assert "first" not in text and "second" in text and "你是孙悟空。" in text
    (short,) = found.report.shortened
    assert short.reason == "2 turns left out for max-length 64"
    assert found.rows[0].length <= 64


def test_a_pair_that_cannot_fit_is_left_out_and_listed(tmp_path: Path, renderer: ChatRenderer) -> None:
    found = pairs(write(tmp_path, PAIR, PAIR | {"rejected": "no " * 99}), renderer)
    assert len(found.rows) == 1
    (long,) = found.report.too_long
    assert long.place.line == 2 and "max-length 64" in long.reason


def test_control_tokens_in_an_answer_and_calls_as_answers_are_bad_rows(tmp_path: Path, renderer: ChatRenderer) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    said = {"role": "assistant", "content": "no"}
    rows = [
        PAIR | {"chosen": "a<|im_end|>b"},
        PAIR | {"chosen": [call], "rejected": [said]},
        PAIR | {"chosen": "我是助手。"},
    ]
    bad = pairs(write(tmp_path, *rows, PAIR), renderer).report.bad
    assert "preferences are learned between texts" in bad[0].reason
    assert "<|im_end|>" in bad[1].reason
    assert bad[2].reason == "the rejected answer is the same as the chosen one"


def test_rows_with_the_same_prompt_are_never_split(tmp_path: Path, renderer: ChatRenderer) -> None:
    rows = [PAIR | {"prompt": f"q{n % 10}", "chosen": f"yes {n}"} for n in range(40)]
    found = pairs(write(tmp_path, *rows), renderer)
    training, validation = found.split(0.2, seed=5)
    assert len(validation) == 8 and len(training) == 32
    assert not {tuple(row.prompt_ids) for row in training} & {tuple(row.prompt_ids) for row in validation}
    assert (training, validation) == found.split(0.2, seed=5)
