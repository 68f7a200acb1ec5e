"""docs/api.md says of every parameter what it does here. Each row of its tables is sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.api.chat_schemas import ChatCompletionRequest
from serving.api.text_schemas import TextCompletionRequest
from tests import tiny
from tests.serving.running import RunningServer, running_server
from tests.serving.test_api import QUESTION, settings_for

BASE = "bianlian-mini"
PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| `(?P<example>.+?)` \| (?P<verdict>supported|by template|without effect|refused) \|", re.M
)
BODIES = {
    "chat/completions": {"model": BASE, "messages": QUESTION, "temperature": 0, "max_tokens": 6},
    "completions": {"model": BASE, "prompt": "Once", "temperature": 0, "max_tokens": 6},
}
NEEDS = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "max_completion_tokens": {"max_tokens": None},
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


def answer(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [choice.get("text") or choice["message"]["content"] for choice in reply.json()["choices"]]


@pytest.mark.parametrize(
    ("endpoint", "name", "example", "verdict"), [(endpoint, *row) for endpoint in BODIES for row in rows(endpoint)]
)
def test_the_table_of_parameters_is_true(
    server: RunningServer, endpoint: str, name: str, example: str, verdict: str
) -> None:
    plain = BODIES[endpoint]
    body = plain | NEEDS.get(name, {})
    reply = httpx.post(f"{server.url}/v1/{endpoint}", json=body | {name: json.loads(example)})
    if verdict in ("refused", "by template"):  # this base's template has nothing; test_tools has those that do
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert name in (error["param"] or error["message"]), error
    elif verdict == "without effect":
        assert answer(reply) == answer(httpx.post(f"{server.url}/v1/{endpoint}", json=plain))
    else:
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("endpoint", "schema"), [("chat/completions", ChatCompletionRequest), ("completions", TextCompletionRequest)]
)
def test_the_table_has_every_parameter_that_is_taken(
    endpoint: str, schema: type[ChatCompletionRequest | TextCompletionRequest]
) -> None:
    taken = {name for name, _, verdict in rows(endpoint) if verdict != "refused"}
    assert taken == set(schema.model_fields)


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
