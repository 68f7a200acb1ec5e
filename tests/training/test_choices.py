"""The form of the Train tab as a request, and what is known of its run before it starts."""

import json
import os
from pathlib import Path

import pytest

from adapters.errors import BianlianError, Invalid, NotFound
from serving.files import FileStore
from training.choices import EPOCHS, STRENGTHS, Choices, check, suggested_name
from training.config import auto_learning_rate
from training.jobs.fine_tuning import FineTuning, FineTuningRequest
from training.jobs.queue import JobQueue

ROWS = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}"} for n in range(40)]
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"say {n}"}]},
        "preferred_output": [{"role": "assistant", "content": f"{n}"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    for n in range(12)
]


@pytest.fixture
def tuning(tiny_base: Path, tmp_path: Path) -> FineTuning:
    return FineTuning(JobQueue(tmp_path), FileStore(tmp_path / "uploads"), {"tiny": str(tiny_base)}, lambda name: None)


def upload(tuning: FineTuning, name: str, content: str) -> str:
    with tuning.files.workspace() as workspace:
        received = workspace / "received"
        received.write_text(content, encoding="utf-8")
        return tuning.files.add(received, name, "fine-tune").id


def form(file: str, **filled: object) -> Choices:
    return Choices(file=file, model="tiny", **filled)  # type: ignore[arg-type]


def test_plain_words_become_numbers() -> None:
    choices = form(
        "file-1", name="face", length="long", strength="gentle", system=" 你是猫。 ", questions="你是谁？\n\n饿吗？"
    )
    request = choices.request("sft")
    rank, times = STRENGTHS["gentle"]
    assert (request.suffix, request.training_file, request.model) == ("face", "file-1", "tiny")
    assert (request.chosen.n_epochs, request.chosen.learning_rate_multiplier) == (EPOCHS["long"], times)
    assert request.bianlian == {
        "objective": "sft",
        "lora_r": rank,
        "system": "你是猫。",
        "demo_prompts": ["你是谁？", "饿吗？"],
    }


def test_a_knob_that_was_turned_goes_before_the_plain_words() -> None:
    advanced = {"epochs": 2, "lora_r": 3, "learning_rate": 1e-3, "seed": 7, "batch_size": None, "targets": ()}
    request = form("file-1", strength="strong", advanced=advanced).request("sft")
    assert request.chosen.n_epochs == 2 and request.chosen.batch_size is None and request.seed == 7
    assert request.bianlian["lora_r"] == 3 and request.bianlian["learning_rate"] == 1e-3
    assert request.chosen.learning_rate_multiplier is None  # the rate that was typed is the rate
    assert "targets" not in request.bianlian


def test_method_full_is_asked_for_without_a_rank() -> None:
    assert "lora_r" not in form("file-1", advanced={"method": "full"}).request("sft").bianlian


@pytest.mark.parametrize(
    ("filled", "names"),
    [
        ({"advanced": {"beta": 0.2}}, "beta"),
        ({"advanced": {"epochs": 500}}, "n_epochs"),
        ({"name": "n" * 70}, "suffix"),
        ({"questions": "\n".join("abcdefghijklmnopqrst")}, "demo_prompts"),
    ],
)
def test_what_no_job_may_say_is_refused_by_name(filled: dict[str, object], names: str) -> None:
    with pytest.raises(Invalid) as refused:
        form("file-1", **filled).request("sft")
    assert refused.value.param == names


def test_a_check_leaves_nothing_and_names_the_file_as_it_came(tuning: FineTuning) -> None:
    rows = [*ROWS, {"instruction": "no answer"}]
    file = upload(tuning, "甄嬛.json", json.dumps(rows, ensure_ascii=False, indent=0))
    found = check(tuning, form(file), device="cpu").preflight
    assert found.formats == {"甄嬛.json": "alpaca"} and found.good == 40 and found.refused is None
    assert str(found.bad[0]).startswith("甄嬛.json:") and "output" in str(found.bad[0])
    assert found.preview[0].file == "甄嬛.json" and any(piece.learned for piece in found.preview[0].pieces)
    assert [path.name for path in tuning.files.root.iterdir()] == [file]  # type: ignore[attr-defined]
    assert tuning.queue.all() == []


def test_the_plan_is_that_of_the_run_with_a_reason_for_what_was_chosen(tuning: FineTuning) -> None:
    file = upload(tuning, "rows.json", json.dumps(ROWS))
    found = check(tuning, form(file, strength="gentle", advanced={"batch_size": 5}), device="cpu").preflight
    assert found.plan["learning_rate"] == pytest.approx(auto_learning_rate(64) * STRENGTHS["gentle"][1])
    assert found.plan["batch_size"] == 5 and "batch_size" not in found.reasons and "learning_rate" in found.reasons


def test_the_rows_say_what_they_are_for(tuning: FineTuning) -> None:
    file = upload(tuning, "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in PAIRS))
    checked = check(tuning, form(file), device="cpu")
    assert checked.objective == "dpo" and checked.preflight.refused is None
    assert form(file).request(checked.objective).kind == "dpo"
    assert checked.preflight.plan["learning_rate"] == pytest.approx(auto_learning_rate(64) / 10)
    chosen = check(tuning, form(file, objective="sft"), device="cpu")
    assert chosen.preflight.refused and "dpo" in chosen.preflight.refused


def test_what_cannot_be_read_is_said_without_saying_where_it_lies(tuning: FineTuning, tmp_path: Path) -> None:
    for name, content in (("broken.json", "[{"), ("rows.jsonl", '{\n"a": 1}')):
        with pytest.raises(Invalid) as refused:
            check(tuning, form(upload(tuning, name, content)), device="cpu")
        assert name in refused.value.message and str(tmp_path) not in refused.value.message
    with pytest.raises(NotFound):
        check(tuning, form("file-" + "0" * 24), device="cpu")
    with pytest.raises(BianlianError, match="val_split"):
        settings = {"val_split": 0.0, "early_stopping": 2}
        check(tuning, form(upload(tuning, "rows.json", json.dumps(ROWS)), advanced=settings), device="cpu")


def test_a_draft_reads_files_of_any_name(tuning: FineTuning) -> None:
    content = json.dumps(ROWS)
    for name in ("长" * 200 + ".json", "rows.JSON", "..json"):
        request = FineTuningRequest(model="tiny", training_file=upload(tuning, name, content))
        with tuning.draft(request) as config:
            assert config.data[0].read_text() == content and config.data[0].suffix.lower() == ".json"
            assert os.path.commonpath([config.data[0], tuning.files.root]) == str(tuning.files.root)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("huanhuan-100.json", "huanhuan"),
        ("My Data.train.jsonl.gz", "my"),
        ("甄嬛.json", "persona"),
        ("wukong_everyday.jsonl", "wukong-everyday"),
        ("2024.csv", "2024"),
    ],
)
def test_a_name_is_suggested_that_an_adapter_may_have(filename: str, name: str) -> None:
    assert suggested_name(filename) == name
