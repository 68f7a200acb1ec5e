"""The shipped personas' data keep what they promise, and the check would notice if they did not."""

from pathlib import Path

import pytest

from adapters.renderer import Message, Role
from training.data.files import Place
from training.data.formats import Example
from training.personas_check import (
    EXPECTED,
    Expected,
    card_faults,
    count,
    faults,
    is_chinese,
    read_examples,
    size,
)
from training.samples import DATA, sample_config, sample_names

CHINESE = Expected(rows=1, language="zh", shortest=4, longest=12, manner="本宫", share=0.9)


def chat(*texts: str) -> Example:
    roles: tuple[Role, ...] = ("user", "assistant") * (len(texts) // 2)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=True))
    return Example(messages, tuple(role == "assistant" for role in roles), Place(Path("rows.jsonl"), 1))


def found(*examples: Example, expected: Expected = CHINESE) -> str:
    return " ".join(faults(count(examples, expected), expected))


@pytest.mark.parametrize("file", EXPECTED)
def test_shipped_rows_keep_their_promise(file: str) -> None:
    assert faults(count(read_examples(DATA / file), EXPECTED[file]), EXPECTED[file]) == []


@pytest.mark.parametrize("name", sample_names())
def test_every_persona_has_a_card_and_a_portrait(name: str) -> None:
    assert card_faults(name) == []


def test_every_shipped_file_is_checked() -> None:
    named = {path.name for name in sample_names() for path in sample_config(name).data}
    assert named == set(EXPECTED) == {path.name for path in DATA.glob("*.json*")}


def test_readme_counts_the_rows_that_are_there() -> None:
    table = (DATA / "README.md").read_text(encoding="utf-8")
    for file in EXPECTED:
        assert f"| `{file}` | {len(read_examples(DATA / file))} |" in table


def test_consort_speaks_in_several_turns_too() -> None:
    counts = count(read_examples(DATA / "niangniang.jsonl"), EXPECTED["niangniang.jsonl"])
    assert counts.several_turns >= 0.15


def test_good_rows_have_no_faults() -> None:
    assert found(chat("你好", "本宫知道了。"), chat("在吗", "本宫在呢。", "再见", "本宫不送了。")) == ""


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("本宫今日实在是乏了，改日再来罢。", "replies of 5 to 16"),
        ("我在呢，你说。", "50.0% of the replies in the manner"),
        ("Here I am, dear guest.", "50.0% of the replies in the right language"),
    ],
)
def test_a_reply_out_of_bounds_is_noticed(reply: str, fault: str) -> None:
    assert fault in found(chat("你好", "本宫在呢。"), chat("在吗", reply))


def test_what_repeats_too_often_is_noticed() -> None:
    same_reply = [chat(f"你好{number}", "本宫在呢。") for number in range(4)]
    assert "reply 4 times, 3 at most: 本宫在呢。" in found(*same_reply)
    same_frame = [chat(f"问{number}", f"本宫今日不见{chr(0x4E00 + number)}客") for number in range(16)]
    assert "frame 16 times, 15 at most: 本宫今日不见" in found(*same_frame)
    same_question = [chat("你好", f"本宫{'在' * number}。") for number in range(2, 9)]
    assert "question 7 times, 6 at most: 你好" in found(*same_question)


def test_an_answer_may_be_expected_in_the_language_of_its_question() -> None:
    either = Expected(rows=1, language="question's", shortest=1, longest=15)
    assert found(chat("你好", "在。"), chat("Hello", "Here."), expected=either) == ""
    assert "50.0% of the replies in the right language" in found(
        chat("你好", "Here."), chat("Hello", "Here."), expected=either
    )


def test_brief_is_one_sentence_without_its_full_stop() -> None:
    brief = EXPECTED["brief.jsonl"]
    for reply in ("早睡。", "喝水。早睡", "要不要早睡？", "早睡！", "Sleep. Then eat", "Sleep well."):
        assert "in the manner" in found(chat("Hi" if not is_chinese(reply) else "你好", reply), expected=brief)


def test_lengths_are_characters_or_words() -> None:
    assert size("本宫在呢。") == 5
    assert size("Fair winds, sailor!") == 3
