"""docs/api.md says of every parameter what it does here. Each row of its tables is sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api.chat_schemas import ChatCompletionRequest
from serving.api.response_schemas import ResponseRequest
from serving.api.text_schemas import EmbeddingRequest, TextCompletionRequest
from tests import tiny
from tests.serving.running import QUESTION, RunningServer, running_server, settings_for

BASE = "bianlian-mini"
PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| `(?P<example>.+?)` \| (?P<verdict>supported|by template|without effect|refused) \|", re.M
)
BODIES = {
    "chat/completions": {"model": BASE, "messages": QUESTION, "temperature": 0, "max_tokens": 6},
    "completions": {"model": BASE, "prompt": "Once", "temperature": 0, "max_tokens": 6},
    "responses": {"model": BASE, "input": "你好", "temperature": 0, "max_output_tokens": 6},
    "embeddings": {"model": BASE, "input": "你好"},
}
SCHEMAS = {
    "chat/completions": ChatCompletionRequest,
    "completions": TextCompletionRequest,
    "responses": ResponseRequest,
    "embeddings": EmbeddingRequest,
}
LOGPROBS = {"include": ["message.output_text.logprobs"]}
NEEDS = {
    ("chat/completions", "top_logprobs"): {"logprobs": True},
    ("responses", "top_logprobs"): LOGPROBS,
    ("chat/completions", "max_completion_tokens"): {"max_tokens": None},
    **{(endpoint, "stream_options"): {"stream": True} for endpoint in BODIES},
}


def rows(endpoint: str) -> list[tuple[str, str, str]]:
    section = PAGE.split(f"## POST /v1/{endpoint}\n")[1].split("\n## ")[0]
    listed = [line for line in section.splitlines() if line.startswith("| `")]
    found = ROW.findall(section)
    assert len(found) == len(listed), "a row that is not parsed is not tested"
    return found


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    base = tiny.copy(tiny_base, home / BASE)  # under the names the page uses
    with running_server(settings_for(base, home, adapter=[f"wukong={tiny_adapters['r8']}"])) as running:
        yield running
        running.assert_nothing_held()


def answer(reply: httpx.Response) -> list[Any]:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    if "output" in body:
        return [[part["text"] for part in item["content"]] for item in body["output"]]
    if "data" in body:
        return [entry["embedding"] for entry in body["data"]]
    return [choice.get("text") or choice["message"]["content"] for choice in body["choices"]]


@pytest.mark.parametrize(
    ("endpoint", "name", "example", "verdict"), [(endpoint, *row) for endpoint in BODIES for row in rows(endpoint)]
)
def test_the_table_of_parameters_is_true(
    server: RunningServer, endpoint: str, name: str, example: str, verdict: str
) -> None:
    plain = BODIES[endpoint]
    body = plain | NEEDS.get((endpoint, name), {})
    reply = httpx.post(f"{server.url}/v1/{endpoint}", json=body | {name: json.loads(example)})
    if verdict in ("refused", "by template"):  # this base's template has nothing; test_tools has those that do
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert name in (error["param"] or error["message"]), error
    elif verdict == "without effect":
        assert answer(reply) == answer(httpx.post(f"{server.url}/v1/{endpoint}", json=plain))
    else:
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("endpoint", SCHEMAS)
def test_the_table_has_every_parameter_that_is_taken(endpoint: str) -> None:
    taken = {name for name, _, verdict in rows(endpoint) if verdict != "refused"}
    # Some are known only to be refused in words of their own, and one is taken only where a response is kept.
    refused = {"responses": {"max_tokens", "response_format", "previous_response_id"}, "embeddings": {"dimensions"}}
    fields = set(SCHEMAS[endpoint].model_fields) - refused.get(endpoint, set())
    assert taken == fields


@pytest.mark.parametrize("endpoint", BODIES)
def test_null_is_as_not_sent(server: RunningServer, endpoint: str) -> None:
    nulls = {name: None for name, _, _ in rows(endpoint) if name not in BODIES[endpoint]}
    url = f"{server.url}/v1/{endpoint}"
    assert answer(httpx.post(url, json=BODIES[endpoint] | nulls)) == answer(httpx.post(url, json=BODIES[endpoint]))
    missing = httpx.post(url, json=BODIES[endpoint] | {"model": None})
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "model"


def test_an_answer_of_the_sdk_can_be_sent_back_as_it_is(server: RunningServer) -> None:
    """Its message has a `refusal` of null, and other clients write null for everything a message could have."""
    client = server.client()
    first = client.chat.completions.create(model=BASE, messages=QUESTION, max_tokens=6)
    assert first.choices[0].message.model_dump(exclude_unset=True)["refusal"] is None
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": "还有呢？"}]
    assert client.chat.completions.create(model=BASE, messages=messages, max_tokens=6).usage.completion_tokens
    whole = first.choices[0].message.model_dump()  # what is left out as null
    assert whole["tool_calls"] is None
    messages = [*QUESTION, whole, {"role": "user", "content": "还有呢？"}]
    assert client.chat.completions.create(model=BASE, messages=messages, max_tokens=6).usage.completion_tokens
