"""The everyday dialogues are fit to train on, are what their sources give, and are thinned without losing words."""

from training.pretrain import everyday
from training.pretrain.everyday import Exchange


def english(*texts: str) -> Exchange:
    return Exchange("chat", "en", texts)


def test_the_shipped_dialogues_are_what_the_sources_give_and_have_no_faults() -> None:
    exchanges = everyday.build()
    assert everyday.faults(exchanges) == []
    assert everyday.DEFAULT_OUT.read_text(encoding="utf-8") == "".join(row.json_line() + "\n" for row in exchanges)


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
