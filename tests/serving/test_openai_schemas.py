"""Everything the endpoints send is valid by OpenAI's own schemas."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.openai_judge import DESCRIPTION, VARIABLE, Judge
from tests.serving.running import QUESTION, RunningServer, running_server, settings_for

pytestmark = pytest.mark.skipif(DESCRIPTION is None, reason=f"{VARIABLE} does not name OpenAI's API description")

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["甲", "乙"]}},
    "required": ["a"],
    "additionalProperties": False,
}
CHAT: dict[str, Any] = {"model": "r8", "messages": QUESTION, "max_tokens": 8, "seed": 1}
TEXT: dict[str, Any] = {"model": "r8", "prompt": "从前有一只", "max_tokens": 8, "seed": 1}
ASK: dict[str, Any] = {"model": "r8", "input": "你好", "max_output_tokens": 16, "seed": 1}
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


@pytest.fixture(scope="module")
def judge() -> Judge:
    assert DESCRIPTION is not None
    return Judge(Path(DESCRIPTION).expanduser())


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    named = [f"r8={tiny_adapters['r8']}"]
    with running_server(settings_for(tiny_base, home, adapter=named, api_key=["one"], max_waiting=200)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()


def send(
    server: RunningServer, path: str, body: Any = None, *, method: str = "POST", key: str = "one"
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}/v1{path}", json=body, headers=headers, timeout=60)


def events_of(reply: httpx.Response) -> list[Any]:
    """The JSON of every event; `[DONE]` is checked and left out."""
    assert reply.headers["content-type"].startswith("text/event-stream"), reply.text
    datas = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    if not reply.text.startswith("event: "):
        assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "temperature": 0},
        {"logprobs": True, "top_logprobs": 3},
        {"guided_choice": ["好"], "logprobs": True},
        {"max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ],
    ids=str,
)
def test_chat_completions(server: RunningServer, judge: Judge, fields: dict[str, Any]) -> None:
    judge.assert_valid("CreateChatCompletionResponse", send(server, "/chat/completions", CHAT | fields).json())
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = events_of(send(server, "/chat/completions", CHAT | fields | {"stream": True} | options))
        assert len(chunks) > 1
        for chunk in chunks:
            judge.assert_valid("CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "prompt": ["一", "two"]},
        {"logprobs": 2},
        {"echo": True, "logprobs": 1},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"guided_choice": ["好"]},
    ],
    ids=str,
)
def test_completions(server: RunningServer, judge: Judge, fields: dict[str, Any]) -> None:
    whole = send(server, "/completions", TEXT | fields).json()
    judge.assert_valid("CreateCompletionResponse", whole)
    assert all(choice["finish_reason"] for choice in whole["choices"])
    for options in ({}, {"stream_options": {"include_usage": True}}):
        for chunk in events_of(send(server, "/completions", TEXT | fields | {"stream": True} | options)):
            judge.assert_valid("CreateCompletionResponse", chunk)


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({}, "incomplete"),
        ({"guided_choice": ["好"], "user": "me", "metadata": {"a": "b"}, "instructions": "短。"}, "completed"),
        (LOGPROBS, "incomplete"),
        (
            {
                "max_output_tokens": 60,
                "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            },
            "completed",
        ),
        ({"text": {"format": {"type": "json_object"}}, "tools": [], "tool_choice": "none"}, "incomplete"),
    ],
    ids=str,
)
def test_responses(server: RunningServer, judge: Judge, fields: dict[str, Any], last: str) -> None:
    body = ASK | fields
    whole = send(server, "/responses", body).json()
    judge.assert_valid("Response", whole)
    assert whole["status"] == last
    following = send(server, "/responses", body | {"previous_response_id": whole["id"], "stream": True})
    events = events_of(following)
    assert events[-1]["type"] == f"response.{last}"
    for event in events:
        judge.assert_valid("ResponseStreamEvent", event)
    kept = send(server, f"/responses/{whole['id']}", method="GET").json()
    assert kept == whole


def test_a_response_that_fails(server: RunningServer, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = server.services.engine.engine.runner
    run, steps = runner.run, []

    def fail_later(batch: Any) -> Any:
        steps.append(batch)
        return run(batch) if len(steps) % 4 else 1 / 0

    monkeypatch.setattr(runner, "run", fail_later)
    events = events_of(send(server, "/responses", ASK | {"stream": True}))
    assert events[-1]["type"] == "response.failed"
    for event in events:
        judge.assert_valid("ResponseStreamEvent", event)
    *chunks, error = events_of(send(server, "/chat/completions", CHAT | {"stream": True}))
    judge.assert_valid("ErrorResponse", error)
    for chunk in chunks:
        judge.assert_valid("CreateChatCompletionStreamResponse", chunk)
    reply = send(server, "/completions", TEXT)
    assert reply.status_code == 500
    judge.assert_valid("ErrorResponse", reply.json())


@pytest.mark.parametrize("given", ["你好", ["你好", "hello"], [7, 8], [[7], [8, 9]]], ids=str)
def test_embeddings(server: RunningServer, judge: Judge, given: Any) -> None:
    judge.assert_valid("CreateEmbeddingResponse", send(server, "/embeddings", {"model": "r8", "input": given}).json())


def test_models(server: RunningServer, judge: Judge) -> None:
    models = send(server, "/models", method="GET").json()
    judge.assert_valid("ListModelsResponse", models)
    assert len(models["data"]) == 2
    for model_id in ("tiny", "r8", "r8@1"):
        judge.assert_valid("Model", send(server, f"/models/{model_id}", method="GET").json())


def test_errors(server: RunningServer, judge: Judge) -> None:
    replies = {
        400: [
            send(server, path, body | wrong)
            for path, body in (("/chat/completions", CHAT), ("/completions", TEXT), ("/responses", ASK))
            for wrong in ({"temperature": 9}, {"unknown": 1}, {"logit_bias": {"99999999": 1}}, {"guided_regex": "("})
        ],
        404: [
            send(server, "/chat/completions", CHAT | {"model": "nobody"}),
            send(server, "/models/nobody", method="GET"),
            send(server, "/responses/resp_1", method="GET"),
            send(server, "/nothing"),
        ],
        405: [send(server, "/chat/completions", method="PUT")],
        401: [send(server, "/responses", ASK, key="wrong"), send(server, "/models", method="GET", key="?")],
        403: [send(server, "/unload_lora_adapter", {"lora_name": "r8"})],
        413: [send(server, "/responses", ASK | {"input": "x" * (5 << 20)})],
    }
    replies[400].append(send(server, "/responses", ASK | {"previous_response_id": "resp_1"}))
    replies[400].append(
        send(server, "/chat/completions", CHAT | {"messages": [{"role": "user", "content": "你" * 9999}]})
    )
    for status, sent in replies.items():
        for reply in sent:
            assert reply.status_code == status, reply.text
            judge.assert_valid("ErrorResponse", reply.json())


def test_too_many_requests(server: RunningServer, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.services.engine, "max_waiting", 0)
    for path, body in (
        ("/chat/completions", CHAT),
        ("/responses", ASK),
        ("/embeddings", {"model": "r8", "input": "a"}),
    ):
        reply = send(server, path, body)
        assert reply.status_code == 429
        judge.assert_valid("ErrorResponse", reply.json())


def test_the_judge_complains(judge: Judge, server: RunningServer) -> None:
    chat = send(server, "/chat/completions", CHAT).json()
    for path, value in {
        "object": "chat",
        "created": "now",
        "choices.0.finish_reason": "abort",
        "choices.0.message.role": "user",
        "choices.0.message.content": 7,
        "usage.prompt_tokens": None,
    }.items():
        assert judge.complaints("CreateChatCompletionResponse", changed(chat, path, value)), path
    response = send(server, "/responses", ASK | LOGPROBS).json()
    for path, value in {
        "output.0.type": "text",
        "output.0.content.0.annotations": None,
        "output.0.content.0.logprobs.0.bytes": "a",
        "usage.input_tokens_details": {},
        "error": {"code": "oops", "message": ""},
        "text.format.type": "xml",
        "tool_choice": "maybe",
    }.items():
        assert judge.complaints("Response", changed(response, path, value)), path
    for event in events_of(send(server, "/responses", ASK | {"stream": True})):
        assert judge.complaints("ResponseStreamEvent", {k: v for k, v in event.items() if k != "sequence_number"})
        assert judge.complaints("ResponseStreamEvent", event | {"type": "response.output_text"})


def changed(body: Any, path: str, value: Any) -> Any:
    copy = node = json.loads(json.dumps(body))
    *parents, last = path.split(".")
    for step in parents:
        node = node[int(step) if isinstance(node, list) else step]
    assert node[last] != value
    node[last] = value
    return copy
