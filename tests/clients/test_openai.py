"""The openai SDK: the requests of its README, and the error classes that programs catch."""

import asyncio

import openai
import pytest
from conftest import BASE, PERSONA, QUESTION
from pydantic import BaseModel, Field

LONG = {"messages": QUESTION, "max_tokens": 900, "extra_body": {"ignore_eos": True}}


class Face(BaseModel):
    name: str = Field(max_length=12)
    masks: int = Field(ge=0, le=99)


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="unused")


def test_answer_and_history(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=PERSONA, messages=QUESTION, max_completion_tokens=24)
    assert first.choices[0].message.content and first.usage.completion_tokens <= 24
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": "你师父呢？"}]
    second = client.chat.completions.create(model=PERSONA, messages=messages, max_completion_tokens=24)
    assert second.choices[0].message.content and second.usage.prompt_tokens > first.usage.prompt_tokens


def test_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    asked = {"model": PERSONA, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(**asked) as stream:
        assert "chunk" in {event.type for event in stream}
        assert stream.current_completion_snapshot.choices[0].message.content == whole.choices[0].message.content


def test_async_answers_at_once_and_streamed(url: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="unused") as client:

            async def one(model: str) -> str:
                asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 24}
                stream = await client.chat.completions.create(model=model, stream=True, **asked)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(one(BASE), one(PERSONA), one(PERSONA))

    base, persona, again = asyncio.run(ask())
    assert base and persona == again != base


def test_parse_into_pydantic(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(model=PERSONA, messages=QUESTION, response_format=Face, max_tokens=200)
    assert isinstance(reply.choices[0].message.parsed, Face)


def test_text_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=BASE, prompt=["从前有座山，", "你好"], max_tokens=8, n=2, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].logprobs.tokens
    stream = client.completions.create(model=BASE, prompt="从前有座山，", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


def test_models(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {BASE, PERSONA} <= set(models)
    assert models[PERSONA].object == "model" and models[PERSONA].created > 0 and models[PERSONA].owned_by
    assert client.models.retrieve(PERSONA).id == PERSONA


def test_errors_have_the_sdks_classes_and_say_the_way_out(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'wukong'") as unknown:
        client.chat.completions.create(model="wukon", messages=QUESTION)
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.chat.completions.create(model=BASE, messages=QUESTION, temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024 tokens") as long:
        client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "长" * 100_000}])
    assert long.value.code == "context_length_exceeded"


def test_keys(guarded: str) -> None:
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(base_url=guarded, api_key="wrong").models.list()
    user = openai.OpenAI(base_url=guarded, api_key="user-key")
    assert user.models.list().data
    with pytest.raises(openai.PermissionDeniedError, match="admin key"):
        user.post("/unload_lora_adapter", body={"lora_name": PERSONA}, cast_to=object)


def test_a_full_queue_is_a_rate_limit_that_the_sdk_waits_out(guarded: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=guarded, api_key="user-key", max_retries=0) as client:
            running = aiter(await client.chat.completions.create(model=BASE, stream=True, **LONG))
            await anext(running)
            others = [asyncio.create_task(client.chat.completions.create(model=BASE, **LONG)) for _ in range(3)]
            done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_EXCEPTION)
            refused = next(task.exception() for task in done if task.exception())
            assert isinstance(refused, openai.RateLimitError) and int(refused.response.headers["retry-after"]) >= 1
            patient = client.with_options(max_retries=100).chat.completions.with_raw_response
            answered = await patient.create(model=BASE, messages=QUESTION, max_tokens=8)
            assert answered.retries_taken >= 1 and answered.parse().choices[0].message.content
            assert [chunk async for chunk in running][-1].choices[0].finish_reason == "length"
            await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(ask())


def test_responses(client: openai.OpenAI, url: str) -> None:
    reply = client.responses.create(
        model=PERSONA, instructions="用一句话回答。", input="你是谁？", max_output_tokens=24
    )
    assert reply.output_text and reply.usage.output_tokens <= 24
    with client.responses.stream(model=PERSONA, input="你是谁？", temperature=0, max_output_tokens=24) as stream:
        events = [event.type for event in stream]
    assert events[0] == "response.created" and "response.output_text.delta" in events
    parsed = client.responses.parse(model=PERSONA, input="你是谁？", text_format=Face, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Face)


def test_embeddings(client: openai.OpenAI, url: str) -> None:
    first, second = client.embeddings.create(model=BASE, input=["你好", "再见"]).data
    assert len(first.embedding) == len(second.embedding) > 1 and first.embedding != second.embedding
