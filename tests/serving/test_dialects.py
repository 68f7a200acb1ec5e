"""Adapters named in the words of other servers: they mean what `model` would, and never two things at once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    named = [f"{name}={tiny_adapters[name]}" for name in ("r4", "r8")]
    with running_server(settings_for(tiny_base, tmp_path_factory.mktemp("home"), adapter=named)) as running:
        yield running
        running.assert_nothing_held()


def ask(server: RunningServer, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    sent = {"model": "tiny", "messages": QUESTION, **GREEDY, "max_tokens": 6, **body}
    return httpx.post(f"{server.url}/v1/chat/completions", json=sent, headers=headers or {})


@pytest.mark.parametrize(
    ("body", "headers", "adapter"),
    [
        ({"adapter_id": "r8"}, {}, "r8@1"),
        ({"adapter_id": "__base_model__"}, {}, "tiny"),
        ({"lora_path": "r8"}, {}, "r8@1"),
        ({"use_adapter": "r8"}, {}, "r8@1"),
        ({"use_adapter": False}, {}, "tiny"),
        ({"use_adapter": True, "model": "r8"}, {}, "r8@1"),
        ({"use_adapter": True, "adapter_id": "r8"}, {}, "r8@1"),
        ({"lora": [{"id": "r8", "scale": 0.5}]}, {}, "r8@1"),
        ({"lora": [{"name": "r8", "scale": 0.5}, {"name": "r4"}]}, {}, "r8@1+r4@1"),
        ({"model": "r8", "lora": [{"name": "r8", "scale": 0}]}, {}, "tiny"),
        ({"lora_id": "r8"}, {}, "r8@1"),
        ({"lora_id": "0"}, {}, "tiny"),
        ({"patch_id": ["r8"]}, {}, "r8@1"),
        ({}, {"lora_id": "r8"}, "r8@1"),
        ({}, {"patch_id": "0"}, "tiny"),
        ({"model": "r8", "adapter_id": "r8@1", "lora_path": "r8"}, {"lora_id": "r8"}, "r8@1"),
        ({"adapter_id": None, "model": "r4"}, {}, "r4@1"),
    ],
)
def test_every_dialect_says_who_answers(
    server: RunningServer, body: dict[str, object], headers: dict[str, str], adapter: str
) -> None:
    reply = ask(server, headers, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-bianlian-adapter"] == adapter
    assert reply.json()["model"] == body.get("model", "tiny")
    assert ("x-bianlian-digest" in reply.headers) == (adapter != "tiny")


@pytest.mark.parametrize("path", ["responses", "embeddings", "completions"])
def test_the_other_endpoints_read_the_same_dialects(server: RunningServer, path: str) -> None:
    def send(headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
        asked: dict[str, dict[str, object]] = {
            "responses": {"input": "你好", "max_output_tokens": 2},
            "embeddings": {"input": "你好"},
            "completions": {"prompt": "你好", "max_tokens": 2},
        }
        body = {"model": "tiny", **asked[path], **fields}
        return httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers or {}, timeout=60)

    named: list[dict[str, object]] = [{field: "r8"} for field in ("adapter_id", "lora_path", "use_adapter", "patch_id")]
    for fields in (*named, {"lora": [{"name": "r8"}]}, {"model": "r8", "use_adapter": True}):
        assert send(**fields).headers["x-bianlian-adapter"] == "r8@1", fields
    assert send({"lora_id": "r8"}).headers["x-bianlian-adapter"] == "r8@1"
    assert send(lora_id="0").headers["x-bianlian-adapter"] == "tiny"
    refused = send({"lora_id": "r4"}, model="r8")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "header lora_id")
    unknown = send(adapter_id="r9")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "adapter_id")


def test_an_adapter_in_a_dialect_answers_as_the_model_of_that_name(server: RunningServer) -> None:
    def text(**body: object) -> str:
        return ask(server, **body).json()["choices"][0]["message"]["content"]

    assert text(adapter_id="r8") == text(model="r8") != text()
    prompt = {"model": "tiny", "prompt": "你好", **GREEDY}
    url = f"{server.url}/v1/completions"
    tuned = httpx.post(url, json=prompt | {"lora_path": "r8"})
    assert tuned.headers["x-bianlian-adapter"] == "r8@1"
    named = httpx.post(url, json=prompt | {"model": "r8"})
    assert tuned.json()["choices"][0]["text"] == named.json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("body", "headers", "names", "param"),
    [
        ({"model": "r8", "adapter_id": "r4"}, {}, ("model", "adapter_id"), "adapter_id"),
        ({"adapter_id": "r8", "lora_path": "r4"}, {}, ("adapter_id", "lora_path"), "lora_path"),
        ({"model": "r8", "use_adapter": False}, {}, ("model", "use_adapter"), "use_adapter"),
        ({"model": "r8", "lora_id": "0"}, {}, ("model", "lora_id"), "lora_id"),
        ({"lora_id": "r8"}, {"lora_id": "r4"}, ("lora_id", "header lora_id"), "header lora_id"),
        ({"model": "r8", "lora": [{"name": "r4"}]}, {}, ("model", "lora"), "lora"),
        ({"lora": [{"name": "r4"}], "adapter_id": "r8"}, {}, ("lora", "adapter_id"), "adapter_id"),
        ({"use_adapter": True}, {}, ("use_adapter", "model"), "use_adapter"),
    ],
)
def test_a_contradiction_is_refused_and_names_both_fields(
    server: RunningServer, body: dict[str, object], headers: dict[str, str], names: tuple[str, str], param: str
) -> None:
    reply = ask(server, headers, **body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param and all(name in error["message"] for name in names)


@pytest.mark.parametrize("field", ["adapter_id", "lora_path", "use_adapter", "lora_id", "patch_id"])
def test_an_unknown_adapter_is_blamed_on_the_field_that_named_it(server: RunningServer, field: str) -> None:
    reply = ask(server, **{field: "r9"})
    assert reply.status_code == 404 and reply.json()["error"]["param"] == field
    assert "did you mean" in reply.json()["error"]["message"]


def test_unknown_adapters_elsewhere_name_their_field_too(server: RunningServer) -> None:
    assert ask(server, lora=[{"name": "r9"}]).json()["error"]["param"] == "lora"
    load = httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "../x", "lora_path": "/x"})
    assert load.json()["error"]["param"] == "lora_path"
    home = server.services.settings.root
    load = httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "../x", "lora_path": str(home)})
    assert load.json()["error"]["param"] == "lora_name"
    for name in ("../x", "r9"):
        unload = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": name})
        assert unload.json()["error"]["param"] == "lora_name"
