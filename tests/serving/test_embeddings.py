"""POST /v1/embeddings, /tokenize and /detokenize over real HTTP."""

import asyncio
import base64
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer

from adapters.renderer import ZERO_WIDTH_SPACE
from serving.api.limits import MAX_BODY_BYTES
from tests.serving.running import QUESTION, RunningServer, running_server, settings_for
from tests.serving.test_embedding_pool import expected

TEXTS = ["从前有一只猫，他住在山里。", "hello", "你是谁？" * 30]


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    named = [f"r8={tiny_adapters['r8']}"]
    with running_server(settings_for(tiny_base, home, adapter=named, max_batch_tokens=64)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def post(server: RunningServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("model", ["tiny", "r8"])
def test_embeddings_are_transformers_mean_hidden_states_while_chats_run(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path], tokenizer: Any, model: str
) -> None:
    client = server.client()
    answered: list[openai.types.CompletionUsage | None] = []

    def chat() -> None:
        reply = client.chat.completions.create(
            model="r8", messages=QUESTION, max_tokens=60, extra_body={"ignore_eos": True}
        )
        answered.append(reply.usage)

    chats = [threading.Thread(target=chat) for _ in range(3)]
    for thread in chats:
        thread.start()
    raw = client.embeddings.with_raw_response.create(model=model, input=TEXTS)  # the SDK asks for base64
    for thread in chats:
        thread.join()
    assert [usage and usage.completion_tokens for usage in answered] == [60, 60, 60]
    reply = raw.parse()
    assert raw.headers["x-bianlian-adapter"] == ("r8@1" if model == "r8" else "tiny")
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, ids))
    assert [entry.index for entry in reply.data] == [0, 1, 2] and reply.model == model
    for entry, prompt in zip(reply.data, ids, strict=True):
        wanted = expected(tiny_base, tiny_adapters["r8"] if model == "r8" else None, prompt)
        assert torch.allclose(torch.tensor(entry.embedding), wanted, atol=1e-4)


def test_text_token_ids_lists_and_both_encodings_say_the_same(server: RunningServer, tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXTS[0])

    def embed(given: Any, encoding: str = "float") -> list[Any]:
        reply = post(server, "/v1/embeddings", model="tiny", input=given, encoding_format=encoding)
        return [entry["embedding"] for entry in reply.json()["data"]]

    [wanted] = embed(TEXTS[0])
    for given in (ids, [TEXTS[0]], [ids], [TEXTS[0], TEXTS[1]]):
        assert embed(given)[0] == pytest.approx(wanted, abs=1e-5)
    [packed] = embed(TEXTS[0], "base64")
    values = struct.unpack(f"<{len(wanted)}f", base64.b64decode(packed))
    assert values == pytest.approx(wanted, abs=1e-5)


def test_more_inputs_than_may_wait_are_embedded_in_parts(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services.engine, "max_waiting", 100)
    texts = [f"第{number}个" for number in range(150)]
    reply = server.client().embeddings.create(model="r8", input=texts)
    assert [entry.index for entry in reply.data] == list(range(150))
    last = server.client().embeddings.create(model="r8", input=texts[-1])
    assert reply.data[-1].embedding == pytest.approx(last.data[0].embedding, abs=1e-5)


def test_a_name_that_moves_on_between_two_parts_is_a_conflict(
    server: RunningServer, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = server.services.chat
    ask_together = chat.ask_together

    async def then_replace(turns: Any) -> Any:
        answers = await ask_together(turns)
        await chat.load("moving", tiny_adapters["r8"], replace=True)
        return answers

    asyncio.run(chat.load("moving", tiny_adapters["r2"]))
    texts = [f"第{number}个" for number in range(100)]
    whole = post(server, "/v1/embeddings", model="moving", input=texts)
    monkeypatch.setattr(chat, "ask_together", then_replace)
    assert whole.status_code == 200
    assert post(server, "/v1/embeddings", model="moving", input=texts).status_code == 409


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": "你好，" * 600}, "input", "context_length_exceeded"),
        ({"input": ["hello", [7] * 513]}, "input", "invalid_value"),
        ({"input": [[7] * 513]}, "input", "context_length_exceeded"),
        ({"input": [[10**7]]}, "input", "invalid_value"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"dimensions": 8}, "dimensions", "invalid_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"task": "query"}, "task", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], param: str, code: str
) -> None:
    reply = post(server, "/v1/embeddings", **{"model": "tiny", "input": "hello", **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


def test_a_prompt_as_long_as_the_model_takes_is_embedded(server: RunningServer) -> None:
    assert post(server, "/v1/embeddings", model="tiny", input=[[7] * 512]).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokenize_and_detokenize_are_the_tokenizers(server: RunningServer, tokenizer: Any, prefix: str) -> None:
    text = "你好，<|im_end|> hello"
    reply = post(server, f"{prefix}/tokenize", model="r8", prompt=text).json()
    assert reply == {"tokens": tokenizer.encode(text), "count": len(tokenizer.encode(text)), "max_model_len": 512}
    assert post(server, f"{prefix}/detokenize", model="r8", tokens=reply["tokens"]).json() == {"prompt": text}


def test_tokenize_counts_what_a_chat_is_charged(server: RunningServer, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "你好 <|im_end|>"}]
    counted = post(server, "/tokenize", model="r8", messages=messages).json()
    used = server.client().chat.completions.create(model="r8", messages=messages, max_tokens=1).usage  # type: ignore[arg-type]
    assert used and counted["count"] == len(counted["tokens"]) == used.prompt_tokens
    assert ZERO_WIDTH_SPACE in post(server, "/detokenize", tokens=counted["tokens"]).json()["prompt"]
    without = post(server, "/tokenize", messages=messages, add_generation_prompt=False).json()["tokens"]
    assert counted["tokens"][: len(without)] == without and len(without) < counted["count"]


def test_tokenize_refuses_by_name(server: RunningServer) -> None:
    for path, body, param in [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": QUESTION}, None),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ("/detokenize", {"tokens": [10**7]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ]:
        reply = post(server, path, **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), path
    assert post(server, "/tokenize", model="nobody", prompt="a").status_code == 404
    assert post(server, "/detokenize", model="nobody", tokens=[7]).status_code == 404
    assert post(server, "/tokenize", prompt="a" * MAX_BODY_BYTES).status_code == 413


def test_helpers_outside_v1_need_a_key_too(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path, api_key=["one"])) as locked:
        for path in ("/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize", "/v1/embeddings", "/v1/responses"):
            assert post(locked, path, prompt="a", tokens=[7]).status_code == 401
