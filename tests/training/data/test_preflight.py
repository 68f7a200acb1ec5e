"""What a look at data finds before anything is trained: odd rows by line, personal data half hidden, costs, and the
very tokens that will be learned."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from training.config import TrainConfig, parse_config, plan_for
from training.data.preflight import Preflight, preflight, script_of
from training.data.privacy import find_private
from training.data.similar import near_duplicates
from training.estimate import Work, estimate


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"instruction": question, "output": answer, **more}


ROWS = [
    row("Who are you?", "I am the Monkey King, the Great Sage equal to Heaven."),
    row("who are you", "I am the Monkey King - the Great Sage, equal to Heaven!"),
    row("你是谁？", "俺老孙是齐天大圣。"),
    row("你好", "嗯"),
    row("Who are you?", "I am the Monkey King, the Great Sage equal to Heaven."),
    row("写一封信", "请联系 wukong@huaguo.example 或 13812345678。"),
    row("x", ""),
    *[row(f"Count to {n} please.", " ".join(map(str, range(n)))) for n in range(2, 40)],
]


def config(base: Path, directory: Path, rows: list[Any] = ROWS, **options: Any) -> TrainConfig:
    path = directory / "data.jsonl"
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    return parse_config({"data": [path], "name": "check", "base": str(base), **options})


@pytest.fixture(scope="module")
def found(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Preflight:
    return preflight(config(tiny_base, tmp_path_factory.mktemp("data")), device="cpu", preview_rows=2)


def lines(findings: list[Any]) -> list[int]:
    return [finding.line for finding in findings]


def test_odd_rows_are_named_by_line(found: Preflight) -> None:
    assert found.good == len(ROWS) - 1 and found.duplicates == 1
    assert [str(bad).rpartition("data.jsonl")[2] for bad in found.bad] == [":7: output: is empty"]
    assert 2 in lines(found.near_duplicates) and 5 not in lines(found.near_duplicates)
    assert found.near_duplicates[0].reason.endswith("data.jsonl:1")
    assert lines(found.short_answers) == [4]
    assert found.scripts == {"en": 41, "zh": 3}
    assert found.refused is None


def test_personal_data_is_named_by_line_and_never_whole(found: Preflight) -> None:
    assert [(one.line, one.kind) for one in found.private] == [(6, "phone number"), (6, "e-mail address")]
    shown = found.model_dump_json(exclude={"preview"})
    assert "13812345678" not in shown and "wukong@" not in shown
    assert [one.shown for one in found.private] == ["138******78", "w***@h***.example"]


def test_the_histogram_holds_every_row_once(found: Preflight) -> None:
    bars = found.lengths.bars
    assert sum(bar.rows for bar in bars) == found.good
    assert bars[0].start == 1 and bars[-1].end >= found.lengths.longest
    assert all(before.end + 1 == after.start for before, after in zip(bars, bars[1:], strict=False))


def test_every_method_has_steps_time_and_memory(found: Preflight) -> None:
    lora, qlora, full = found.estimates
    assert [one.method for one in found.estimates] == ["lora", "qlora", "full"]
    rows = found.training_rows
    assert lora.steps == 3 * -(-rows // 4)  # few rows: batches of four
    assert full.trained_parameters > lora.trained_parameters == qlora.trained_parameters > 0
    assert qlora.memory.weights < lora.memory.weights == full.memory.weights
    assert full.memory.optimizer > lora.memory.optimizer
    assert all(one.seconds > 0 and one.seconds_by.startswith("measured") for one in found.estimates)
    assert all(one.memory_total == one.memory.total for one in found.estimates)


def test_a_wide_base_is_estimated_by_formula(tiny_base: Path) -> None:
    """No weights are made: a base of seven thousand million parameters takes no memory here."""
    wide = AutoConfig.from_pretrained(tiny_base)
    wide.hidden_size, wide.intermediate_size, wide.num_hidden_layers, wide.vocab_size = 4096, 11008, 32, 32000
    wide.layer_types = ["full_attention"] * 32
    asked = TrainConfig(name="n")
    plan = plan_for(asked, hidden_size=4096, max_model_len=2048, rows=1000)
    work = Work(rows=1000, tokens=200_000, longest=512, learned_share=0.5)
    lora, qlora, full = estimate(wide, asked, plan, work, device="cpu")
    assert lora.seconds_by.startswith("formula")
    assert full.seconds > lora.seconds
    assert 4e9 < full.trained_parameters < 9e9
    assert qlora.memory.weights < 0.4 * lora.memory.weights
    assert lora.steps == Work.steps(work, asked, plan)


def test_the_preview_is_the_training_row_with_what_is_learned_marked(found: Preflight) -> None:
    first, _ = found.preview
    assert [(piece.learned, piece.text) for piece in first.pieces] == [
        (False, "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "I am the Monkey King, the Great Sage equal to Heaven.<|im_end|>"),
    ]


def test_preferences_show_both_sides_and_say_what_they_are_for(tiny_base: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no no"} for n in range(8)]
    found = preflight(config(tiny_base, tmp_path, pairs), device="cpu", preview_rows=1)
    assert found.objectives == ["dpo", "orpo", "kto"] and found.refused is None
    assert [(one.part, one.pieces[-1].text) for one in found.preview] == [
        ("chosen", "yes<|im_end|>"),
        ("rejected", "no no<|im_end|>"),
    ]
    refused = preflight(config(tiny_base, tmp_path, pairs, objective="sft"), device="cpu").refused
    assert refused == "--objective sft does not go with these rows; they are for dpo or orpo or kto"


def test_labels_of_one_kind_are_shown_but_refused(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "yes", "label": True} for n in range(4)]
    found = preflight(config(tiny_base, tmp_path, rows), device="cpu", preview_rows=1)
    assert [one.part for one in found.preview] == ["wanted"]
    assert found.refused == "kto learns from wanted and unwanted answers; all of these have the same label"


def test_bad_data_is_a_result_with_the_reason_not_an_error(tiny_base: Path, tmp_path: Path) -> None:
    found = preflight(config(tiny_base, tmp_path, [row("a", "b"), row("a", "")]), device="cpu")
    assert found.refused is not None and "more than 5%" in found.refused
    assert Preflight.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("身份证 11010519491231002X 。", ["identity number"]),
        ("身份证 110105194912310021", []),  # its check digit is wrong
        ("卡号 6222 0212 3456 7894", ["bank card"]),
        ("卡号 6222 0212 3456 7890", []),
        ("打13900001111或+86 139-0000-1111", ["phone number", "phone number"]),
        ("call (555) 123-4567 or +44 20 7946 0958", ["phone number", "phone number"]),
        ("in 1984, 3.14159265358979, 12345, 2026-11-21 17:30:00", []),
        ("a.b+c@mail.example.org", ["e-mail address"]),
        ("@someone at 5pm", []),
    ],
)
def test_personal_data_is_told_by_form_and_check_digit(text: str, kinds: list[str]) -> None:
    found = list(find_private(text))
    assert [kind for kind, _ in found] == kinds
    assert not any(shown in text for _, shown in found)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("你好，world", "zh"),
        ("Hello 你", "en"),
        ("これはペンです", "ja"),
        ("日本語の文章", "ja"),
        ("Привет", "other"),
        ("Ça va très bien", "en"),
        ("123 !?", "other"),
    ],
)
def test_the_language_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_near_duplicates_share_most_of_their_pieces() -> None:
    story = "Once upon a time there was a monkey who was born from a stone on the Mountain of Flowers and Fruit. " * 3
    other = "The quick brown fox jumps over the lazy dog, and nobody knows why it keeps on doing that every day. " * 3
    texts = [story, other, story.upper().replace(".", "!"), story, other + "Truly.", "completely different"]
    assert near_duplicates(texts) == [(2, 0), (4, 1)]
