"""LiteLLM as a library: chat, text and errors through `api_base`."""

import asyncio

import litellm
import pytest
from conftest import BASE, PERSONA, QUESTION
from pydantic import BaseModel


class Face(BaseModel):
    masks: int


@pytest.fixture
def server_options(url: str) -> dict[str, object]:
    return {"api_base": url, "api_key": "unused", "num_retries": 0}


def test_completion_and_history(server_options: dict[str, object]) -> None:
    first = litellm.completion(model=f"openai/{PERSONA}", messages=QUESTION, max_tokens=24, **server_options)
    assert first.choices[0].message.content and first.usage.completion_tokens <= 24
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": "你师父呢？"}]
    second = litellm.completion(
        model=f"openai/{PERSONA}", messages=messages, max_tokens=24, user="u-1", metadata={"k": "v"}, **server_options
    )
    assert second.choices[0].message.content


def test_acompletion_streamed(server_options: dict[str, object]) -> None:
    asked = {"model": f"openai/{PERSONA}", "messages": QUESTION, "temperature": 0, "max_tokens": 24} | server_options

    async def ask() -> tuple[str, int]:
        text, tokens = "", 0
        async for chunk in await litellm.acompletion(**asked, stream=True, stream_options={"include_usage": True}):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            tokens = chunk.usage.completion_tokens if getattr(chunk, "usage", None) else tokens
        return text, tokens

    whole = litellm.completion(**asked)
    assert asyncio.run(ask()) == (whole.choices[0].message.content, whole.usage.completion_tokens)


def test_response_format(server_options: dict[str, object]) -> None:
    reply = litellm.completion(
        model=f"openai/{PERSONA}", messages=QUESTION, response_format=Face, max_tokens=100, **server_options
    )
    assert Face.model_validate_json(reply.choices[0].message.content)


def test_text_completion(server_options: dict[str, object]) -> None:
    model = f"text-completion-openai/{BASE}"
    reply = litellm.text_completion(model=model, prompt="从前有座山，", max_tokens=8, **server_options)
    assert reply.choices[0].text


def test_errors(server_options: dict[str, object]) -> None:
    with pytest.raises(litellm.NotFoundError, match="did you mean 'wukong'"):
        litellm.completion(model="openai/wukon", messages=QUESTION, **server_options)
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(model=f"openai/{BASE}", messages=QUESTION, temperature=3, **server_options)
    with pytest.raises(litellm.ContextWindowExceededError):
        messages = [{"role": "user", "content": "长" * 100_000}]
        litellm.completion(model=f"openai/{BASE}", messages=messages, **server_options)
