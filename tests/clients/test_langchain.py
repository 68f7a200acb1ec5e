"""LangChain's ChatOpenAI and OpenAI."""

import asyncio

import pytest
from conftest import BASE, PERSONA
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Face(BaseModel):
    masks: int


@pytest.fixture
def chat(url: str) -> ChatOpenAI:
    return ChatOpenAI(model=PERSONA, base_url=url, api_key="unused", temperature=0, max_tokens=24, max_retries=0)


def test_invoke_and_history(chat: ChatOpenAI) -> None:
    asked = [SystemMessage("用一句话回答。"), HumanMessage("你是谁？")]
    first = chat.invoke(asked)
    assert first.content and first.usage_metadata["output_tokens"] <= 24
    assert chat.invoke([*asked, first, HumanMessage("你师父呢？")]).content


def test_streams_and_batches_give_the_same_answer(chat: ChatOpenAI) -> None:
    async def stream() -> str:
        return "".join([part.content async for part in chat.astream("你是谁？")])

    whole = chat.invoke("你是谁？").content
    assert "".join(part.content for part in chat.stream("你是谁？")) == whole
    assert asyncio.run(stream()) == whole
    assert [message.content for message in chat.batch(["你是谁？"] * 2)] == [whole] * 2


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_with_structured_output(chat: ChatOpenAI, method: str) -> None:
    structured = chat.with_structured_output(Face, method=method, include_raw=True)
    reply = structured.invoke("How many masks? Answer as JSON.", max_tokens=100)
    if method == "json_schema":
        assert isinstance(reply["parsed"], Face)
    assert reply["raw"].content.startswith("{")


def test_parameters_of_the_constructor(url: str) -> None:
    chat = ChatOpenAI(
        model=PERSONA,
        base_url=url,
        api_key="unused",
        seed=1,
        n=2,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logprobs=True,
        top_logprobs=2,
        max_completion_tokens=8,
        stop=["。"],
        service_tier="auto",
        verbosity="medium",
        store=False,
        metadata={"run": "7"},
        stream_usage=True,
    )
    reply = chat.generate([[HumanMessage("你是谁？")]])
    assert len(reply.generations[0]) == 2
    assert len(chat.invoke("你是谁？").response_metadata["logprobs"]["content"]) <= 8
    assert "".join(part.content for part in chat.bind(n=1).stream("你是谁？"))


def test_text_completion(url: str) -> None:
    text = OpenAI(model=BASE, base_url=url, api_key="unused", max_tokens=8)
    assert text.invoke("从前有座山，")
    assert "".join(text.stream("从前有座山，"))


def test_embeddings(url: str) -> None:
    # Texts as they are: by default it sends token ids of OpenAI's own vocabulary, which mean something else here.
    embeddings = OpenAIEmbeddings(model=BASE, base_url=url, api_key="unused", check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["你好", "再见"])
    assert len(first) == len(second) == len(embeddings.embed_query("你好")) and first != second


def test_responses_api(url: str) -> None:
    chat = ChatOpenAI(model=PERSONA, base_url=url, api_key="unused", max_tokens=24, use_responses_api=True)
    assert chat.invoke("你是谁？").text
    assert "".join(part.text for part in chat.stream("你是谁？"))
