"""Conversations that go on: the server writes answers down, whoever watches."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.base_model import fingerprint_of
from adapters.errors import Conflict, Invalid, NotFound
from adapters.manifest import AdapterManifest
from adapters.settings import Settings
from app import Services, build_services
from serving.chat import Turn
from serving.conversation import Conversation
from serving.conversations import Conversations, Manner
from serving.engine.sequence import SamplingParams
from serving.history import History
from tests import tiny

LONG, SHORT = 400, 6  # tokens; random weights do not stop by themselves
OWN_PROMPT = "你是孙悟空。"


@dataclass(frozen=True)
class Reader:
    key: str = ""
    admin: bool = True


ME, OTHER = Reader(), Reader("other", admin=False)


@pytest.fixture(scope="module")
def services(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("home")
    adapter = tiny.save_adapter(home / "wukong", tiny_base, rank=2, seed=1)
    manifest = AdapterManifest(
        name="wukong",
        base_name=tiny_base.name,
        base_fingerprint=fingerprint_of(tiny_base),
        template_hash="",
        system_prompt=OWN_PROMPT,
    )
    manifest.write(adapter)
    running = build_services(
        Settings(
            home=home,
            base=str(tiny_base),
            device="cpu",
            dtype="float32",
            kv_cache_memory=0.05,
            adapter=[f"wukong={adapter}"],
        )
    )
    yield running
    running.close()


def manner(max_tokens: int, seed: int = 1, **options: str | None) -> Manner:
    return Manner("wukong", SamplingParams(seed=seed, ignore_eos=True), max_tokens=max_tokens, **options)


def run(services: Services, talk: Callable[[Conversations], Awaitable[None]]) -> None:
    """`talk` on an event loop; afterwards nothing runs and no version is held."""

    async def with_conversations() -> None:
        conversations = Conversations(services.chat, History(services.database))
        try:
            await talk(conversations)
        finally:
            await conversations.close()
        await services.engine.call(lambda: None)
        assert not services.engine.engine.has_work and services.registry.total_leases == 0

    asyncio.run(with_conversations())


async def finished(conversations: Conversations, conversation_id: str) -> Conversation:
    if running := conversations.running(conversation_id):
        await asyncio.wait([running.task])
    return conversations.history.open(ME, conversation_id)


async def grown(conversations: Conversations, conversation_id: str) -> str:
    """What an answer has said once it has begun to speak."""
    running = conversations.running(conversation_id)
    assert running is not None
    while not running.progress.text:
        await asyncio.sleep(0)
    return running.progress.text


def test_an_answer_is_written_down_though_nobody_watches(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "你是谁？", manner(SHORT))).conversation_id
        found = await finished(conversations, begun)
        question, answer = found.branch
        assert question.content == found.title == "你是谁？" and answer.content
        assert answer.answer is not None and answer.answer.finish_reason == "length"
        version = services.registry.resolve("wukong")
        assert (answer.answer.adapter, answer.answer.digest) == (str(version), version.digest)
        assert answer.answer.tokens == SHORT and (answer.answer.tokens_per_s or 0) > 0
        assert conversations.running(begun) is None

    run(services, talk)


def test_the_next_question_reads_what_was_said_before(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "一", manner(SHORT))).conversation_id
        first = (await finished(conversations, begun)).branch[1].content
        running = await conversations.ask(ME, begun, "二", manner(SHORT))
        assert running.conversation_id == begun
        said = [("user", "一"), ("assistant", first), ("user", "二")]
        turn = Turn("wukong", tuple({"role": role, "content": text} for role, text in said))  # type: ignore[misc]
        expected = await services.chat.tokenize(turn, head=True, special=False)
        assert list(running.progress.answer.prompt_ids) == expected

    run(services, talk)


def test_stop_keeps_what_was_said(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "讲个故事", manner(LONG))).conversation_id
        seen = await grown(conversations, begun)
        await conversations.stop(ME, begun)
        answer = conversations.history.open(ME, begun).branch[-1]
        assert answer.content.startswith(seen)
        assert answer.answer is not None and answer.answer.finish_reason == "abort" and answer.answer.tokens < LONG

    run(services, talk)


def test_closing_keeps_what_was_said(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "讲个故事", manner(LONG))).conversation_id
        seen = await grown(conversations, begun)
        await conversations.close()
        assert conversations.history.open(ME, begun).branch[-1].content.startswith(seen)

    run(services, talk)


def test_regenerating_and_editing_keep_the_older_versions(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "一", manner(SHORT))).conversation_id
        first = (await finished(conversations, begun)).branch[-1]
        await conversations.regenerate(ME, begun, first.id, manner(SHORT, seed=2))
        again = (await finished(conversations, begun)).branch[-1]
        assert again.parent_id == first.parent_id and again.content != first.content
        await conversations.edit(ME, begun, first.parent_id or 0, "二", manner(SHORT))
        found = await finished(conversations, begun)
        assert [message.content for message in found.branch[:-1]] == ["二"] and len(found.messages) == 5
        with pytest.raises(NotFound):
            await conversations.regenerate(ME, begun, found.branch[0].id, manner(SHORT))  # a question, no answer

    run(services, talk)


def test_what_is_refused_is_not_kept(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        before = conversations.history.all(ME)
        for question, how, problem in (
            ("长" * 2000, manner(SHORT), "maximum context length"),
            (" \n", manner(SHORT), "question is empty"),
            ("你好", Manner("nobody", SamplingParams()), "does not exist"),
        ):
            with pytest.raises((Invalid, NotFound), match=problem):
                await conversations.ask(ME, "", question, how)
        assert conversations.history.all(ME) == before

    run(services, talk)


def test_a_conversation_gives_one_answer_at_a_time(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "讲个故事", manner(LONG))).conversation_id
        with pytest.raises(Conflict, match="being answered"):
            await conversations.ask(ME, begun, "快点", manner(SHORT))
        elsewhere = await conversations.ask(ME, "", "你好", manner(SHORT))
        assert elsewhere.conversation_id != begun
        await conversations.stop(ME, begun)
        await conversations.ask(ME, begun, "快点", manner(SHORT))
        assert len((await finished(conversations, begun)).messages) == 4

    run(services, talk)


def test_nobody_asks_stops_or_deletes_in_somebody_elses_conversation(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "讲个故事", manner(LONG))).conversation_id
        running = conversations.running(begun)
        assert running is not None
        for forbidden in (
            lambda: conversations.ask(OTHER, begun, "x", manner(SHORT)),
            lambda: conversations.edit(OTHER, begun, running.message_id - 1, "x", manner(SHORT)),
            lambda: conversations.regenerate(OTHER, begun, running.message_id, manner(SHORT)),
            lambda: conversations.stop(OTHER, begun),
            lambda: conversations.delete(OTHER, begun),
        ):
            with pytest.raises(NotFound):
                await forbidden()
        assert not running.task.done()

    run(services, talk)


def test_deleting_ends_the_answer(services: Services) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "讲个故事", manner(LONG))).conversation_id
        await conversations.delete(ME, begun)
        assert conversations.running(begun) is None
        assert begun not in [summary.id for summary in conversations.history.all(ME)]

    run(services, talk)


@pytest.mark.parametrize("system", [None, "", "你是老师。"])
def test_the_system_prompt_is_the_models_own_none_or_one_of_ours(services: Services, system: str | None) -> None:
    async def talk(conversations: Conversations) -> None:
        begun = (await conversations.ask(ME, "", "你好", manner(SHORT, system=system))).conversation_id
        running = conversations.running(begun)
        assert running is not None
        prompt = services.base.tokenizer.decode(running.progress.answer.prompt_ids)
        assert (OWN_PROMPT in prompt, "你是老师。" in prompt) == (system is None, bool(system))
        assert (await finished(conversations, begun)).system == system

    run(services, talk)
