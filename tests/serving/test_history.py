"""Conversations in the database: trees that keep every version, seen by those they belong to and by admins."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.errors import Invalid, NotFound
from serving.conversation import AnswerRecord, Conversation
from serving.conversation_export import exported, to_uploads
from serving.database.database import Database
from serving.database.tables import messages
from serving.files import FileStore
from serving.history import History, new_conversation_id
from serving.system_prompts import SystemPrompts
from training.data.formats import Example, read_data


@dataclass(frozen=True)
class Reader:
    key: str
    admin: bool = False


ANN, BEN, ADMIN = Reader("ann"), Reader("ben"), Reader("root", admin=True)
RECORD = AnswerRecord(model="wukong", adapter="wukong@1", digest="ab", seed=7)


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    database = Database(database_url)
    yield History(database)
    database.close()


class Talk:
    """A conversation as it comes about."""

    def __init__(self, history: History, reader: Reader = ANN, system: str | None = None):
        self.history, self.reader, self.system, self.id = history, reader, system, new_conversation_id()

    def say(self, question: str | None, answer: str, *, after: int | None) -> int:
        """Returns the answer's message id."""
        message_id = self.history.begin_answer(
            self.reader, self.id, after, question, model="wukong", system=self.system, answer=RECORD
        )
        self.history.keep_answer(message_id, answer, "", RECORD)
        return message_id

    def opened(self) -> Conversation:
        return self.history.open(self.reader, self.id)


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.branch]


def test_a_conversation_is_found_as_it_was_said(history: History) -> None:
    talk = Talk(history)
    first = talk.say("你是谁？\n  缩进", "俺老孙", after=None)
    talk.say("然后呢", "没了", after=first)
    found = talk.opened()
    assert texts(found) == ["你是谁？\n  缩进", "俺老孙", "然后呢", "没了"]
    assert (found.title, found.model, found.system) == ("你是谁？ 缩进", "wukong", None)
    assert found.branch[1].answer == RECORD and found.branch[0].answer is None


def test_an_answer_made_again_keeps_the_older_one_and_both_can_be_shown(history: History) -> None:
    talk = Talk(history)
    first = talk.say("q1", "a1", after=None)
    second = talk.say("q2", "a2", after=first)
    question = talk.opened().message(first, "assistant").parent_id
    again = talk.say(None, "a1'", after=question)
    assert texts(talk.opened()) == ["q1", "a1'"]
    assert [each.id for each in talk.opened().siblings(talk.opened().message(again, "assistant"))] == [first, again]
    assert texts(history.show(ANN, talk.id, first)) == ["q1", "a1", "q2", "a2"]
    assert talk.opened().leaf_id == second


def test_a_question_asked_otherwise_is_a_branch_of_its_own(history: History) -> None:
    talk = Talk(history)
    first = talk.say("q1", "a1", after=None)
    talk.say("q2", "a2", after=first)
    talk.say("q2'", "a2'", after=first)
    found = talk.opened()
    assert texts(found) == ["q1", "a1", "q2'", "a2'"]
    [older, newer] = found.siblings(found.branch[2])
    assert (older.content, newer.content) == ("q2", "q2'")
    assert texts(history.show(ANN, talk.id, older.id)) == ["q1", "a1", "q2", "a2"]


def test_a_question_without_an_answer_is_not_read_again(history: History) -> None:
    talk = Talk(history)
    first = talk.say("q1", "a1", after=None)
    silent = talk.say("q2", "", after=first)
    last = talk.say("q3", "a3", after=silent)
    assert [message["content"] for message in talk.opened().said(last)] == ["q1", "a1", "q3", "a3"]


def test_everybody_sees_their_own_and_admins_all(history: History) -> None:
    anns, bens = Talk(history, ANN), Talk(history, BEN)
    message = anns.say("ann's secret", "a", after=None)
    bens.say("ben's", "b", after=None)
    assert [each.id for each in history.all(ANN)] == [anns.id] == [each.id for each in history.all(ANN, everyone=True)]
    assert history.all(BEN, search="secret") == [] == history.all(ADMIN)
    assert {each.key for each in history.all(ADMIN, everyone=True)} == {"ann", "ben"}
    assert texts(history.open(ADMIN, anns.id)) == ["ann's secret", "a"]
    for forbidden in (
        lambda: history.open(BEN, anns.id),
        lambda: history.rename(BEN, anns.id, "mine"),
        lambda: history.delete(BEN, anns.id),
        lambda: history.show(BEN, anns.id, message),
    ):
        with pytest.raises(NotFound):
            forbidden()
    intruding = Talk(history, BEN)
    intruding.id = anns.id
    with pytest.raises(NotFound):
        intruding.say("mine now", "x", after=None)
    assert texts(anns.opened()) == ["ann's secret", "a"]


def test_search_finds_titles_and_what_was_said_word_for_word(history: History) -> None:
    tea, rain = Talk(history), Talk(history)
    tea.say("喝茶吗？", "100% 龙井", after=None)
    rain.say("Weather", "rain_today", after=None)
    history.rename(ANN, rain.id, "  About\n clouds ")
    found = {word: [each.title for each in history.all(ANN, search=word)] for word in ("龙井", "CLOUDS", "%", "_", "x")}
    assert found == {
        "龙井": ["喝茶吗？"],
        "CLOUDS": ["About clouds"],
        "%": ["喝茶吗？"],
        "_": ["About clouds"],
        "x": [],
    }
    assert [each.title for each in history.all(ANN)] == ["About clouds", "喝茶吗？"]  # the latest first


@pytest.mark.parametrize("title", ["", " \n ", "x" * 121])
def test_a_title_that_is_none_is_refused(history: History, title: str) -> None:
    talk = Talk(history)
    talk.say("q", "a", after=None)
    with pytest.raises(Invalid, match="1 to 120 characters"):
        history.rename(ANN, talk.id, title)


def test_what_is_deleted_leaves_nothing(history: History) -> None:
    talk = Talk(history)
    running = talk.say("q1", "a1", after=talk.say("q0", "a0", after=None))
    history.delete(ANN, talk.id)
    history.keep_answer(running, "late", "", RECORD)  # its answer may still be ending
    assert history.all(ANN) == []
    with history.database.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(messages)) == 0
    with pytest.raises(NotFound):
        talk.say(None, "again", after=running)


@pytest.mark.parametrize("made_up", ["", "chat-1", "chat-" + "0" * 32, "\0", "'; DROP TABLE messages; --"])
def test_ids_that_nobody_gave_are_not_found(history: History, made_up: str) -> None:
    with pytest.raises(NotFound, match="no such conversation"):
        history.open(ADMIN, made_up)


def test_system_prompts_are_kept_for_each_key(history: History) -> None:
    prompts = SystemPrompts(history.database)
    assert prompts.save(ANN, " 老师 ", "你是老师。") == "老师"
    prompts.save(ANN, "老师", "你是好老师。")
    assert prompts.all(ANN) == {"老师": "你是好老师。"} and prompts.all(BEN) == {}
    for name, text in (("", "x"), ("x" * 41, "x"), ("x", " ")):
        with pytest.raises(Invalid):
            prompts.save(ANN, name, text)
    prompts.delete(BEN, "老师")
    assert prompts.all(ANN)
    prompts.delete(ANN, "老师")
    assert prompts.all(ANN) == {}


def test_exports_are_training_rows_of_the_branch_on_screen(history: History, tmp_path: Path) -> None:
    talk, empty = Talk(history, system="你是孙悟空。"), Talk(history)
    first = talk.say("你是谁？", "旧", after=None)
    talk.say(None, "俺老孙\n来也", after=talk.opened().message(first, "assistant").parent_id)
    empty.say("无人应答", "", after=None)
    both = [talk.opened(), empty.opened()]
    expected = [("system", "你是孙悟空。"), ("user", "你是谁？"), ("assistant", "俺老孙\n来也")]
    for form, name in (("messages", "a.jsonl"), ("sharegpt", "a.json")):
        (tmp_path / name).write_text(exported(both, form), encoding="utf-8")
        [row] = read_data(tmp_path / name).rows
        assert isinstance(row, Example)
        assert [(message["role"], message["content"]) for message in row.messages] == expected
    markdown = exported(both, "markdown")
    assert (
        markdown.startswith("# 你是谁？") and "## wukong@1\n\n俺老孙\n来也" in markdown and "无人应答" not in markdown
    )
    files = FileStore(tmp_path / "uploads")
    stored = to_uploads(both, files)
    assert stored.purpose == "fine-tune" and stored.filename.endswith(".jsonl")
    [line] = files.path(stored.id, "fine-tune").read_text(encoding="utf-8").splitlines()
    assert [message["role"] for message in json.loads(line)["messages"]] == ["system", "user", "assistant"]
    with pytest.raises(Invalid, match="no answered question"):
        to_uploads([empty.opened()], files)
    assert len(files.all()) == 1
