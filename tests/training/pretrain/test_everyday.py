"""The everyday dialogues of the bundled base: what the sources give is fit to train on, and it is what ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.pretrain import everyday
from training.pretrain.everyday import Exchange


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    return everyday.build()


def test_the_sources_have_no_faults(exchanges: list[Exchange]) -> None:
    assert everyday.faults(exchanges) == []


def test_the_shipped_file_is_what_the_sources_give(exchanges: list[Exchange]) -> None:
    shipped = everyday.DEFAULT_OUT.read_text(encoding="utf-8")
    assert shipped == "".join(exchange.json_line() + "\n" for exchange in exchanges)


def test_a_slot_fills_every_turn_of_a_chat_from_the_same_row(tmp_path: Path) -> None:
    source = (
        "== chat zh\nT: 猫 / 小花 ; 狗 / 大黄\nU: 我的{a}叫{b}\nA: {b}真可爱。\nU: 我的{a}叫什么？\nA: 叫{b}。\nN: 1\n"
    )
    (tmp_path / "zh.txt").write_text(source, encoding="utf-8")
    chats = {exchange.texts for exchange in everyday.build(tmp_path) if exchange.category == "chat"}
    bare = {tuple(text.rstrip("？") for text in texts) for texts in chats}
    assert bare == {
        ("我的猫叫小花", "小花真可爱。", "我的猫叫什么", "叫小花。"),
        ("我的狗叫大黄", "大黄真可爱。", "我的狗叫什么", "叫大黄。"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("== greeting\n", "expected '== category zh|en'"),
        ("U: 你好\n", "unreadable line"),
        ("== greeting zh\nA: 你好\n", "must alternate"),
        ("== greeting zh\nU: 你好\n", "does not end on an A: line"),
        ("== fact zh\nT: 法国 / 巴黎 ; 日本\nU: {a}\nA: {b}\n", "rows of different lengths"),
    ],
)
def test_a_malformed_block_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"zh\.txt:\d+.*") as refusal:
        everyday.parse(text, "zh.txt")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        (("你好", "你好", "再见"), "roles do not alternate"),
        (("你好", " "), "empty turn"),
        (("{a}是什么？", "是水果。"), "unfilled slot"),
        (("你是谁", "我是變脸。"), "traditional characters 變"),
        (("你好", "好" * (everyday.MAX_REPLY_CHARS + 1)), "reply of 201 characters"),
    ],
)
def test_a_dialogue_unfit_to_train_on_is_named(texts: tuple[str, ...], fault: str) -> None:
    found = everyday.faults([Exchange("chat", "zh", texts)])
    assert any(line.startswith(fault) for line in found)


def english(*texts: str) -> Exchange:
    return Exchange("chat", "en", texts)


def test_an_opening_is_soon_used_up_while_a_later_turn_may_recur() -> None:
    openings = [english("Why?", f"Because of {number}.") for number in range(20)]
    follow_ups = [english(f"Fact {number}?", f"Yes, {number}.", "Why?", f"It is {number}.") for number in range(20)]
    kept = list(everyday.limited(openings + follow_ups))
    assert sum(row.texts[0] == "Why?" for row in kept) == everyday.MAX_SAME_OPENING
    assert sum(len(row.texts) > 2 for row in kept) == 20
    spent = [english(f"Fact {number}?", f"Yes, {number}.", "Why?", f"It is {number}.") for number in range(99)]
    assert len(list(everyday.limited(spent))) == everyday.MAX_SAME_FOLLOW_UP


def test_thinning_english_loses_no_reply_no_phrasing_and_no_chat() -> None:
    pairs = [
        ("How are you?", "Fine!"),
        ("how are you", "Fine!"),
        ("How is it going?", "Well!"),
        ("how is it going", "Well!"),
    ]
    chat = english("Hi", "Hello!", "Why?", "It is polite.")
    chinese = Exchange("greeting", "zh", ("你好", "你好！"))
    kept = everyday.balanced([*(english(*pair) for pair in pairs), chat, chinese])
    single = [row.texts for row in kept if row.language == "en" and len(row.texts) == 2]
    assert len(single) == 2
    assert {reply for _, reply in single} == {"Fine!", "Well!"}
    assert {everyday.casual(user, "en") for user, _ in single} == {"how are you", "how is it going"}
    assert chat in kept and chinese in kept


def test_faults_name_an_opening_used_too_often() -> None:
    rows = [english("Hello", f"Hello, {number}.") for number in range(everyday.MAX_SAME_OPENING + 1)]
    assert any(fault.startswith("opening 7 times: Hello") for fault in everyday.faults(rows))
