"""POST /v1/responses over real HTTP, with the real openai SDK."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from serving.keys import KeyStore
from serving.response_store import ResponseStore, StoredResponse
from tests.serving.running import QUESTION, RunningServer, running_server, settings_for

ASKED = QUESTION[0]["content"]
GREEDY = {"model": "r8", "temperature": 0, "max_output_tokens": 16}


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    adapters = [f"{name}={tiny_adapters[name]}" for name in ("r2", "r8")]
    with running_server(settings_for(tiny_base, home, adapter=adapters)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()


def ask(server: RunningServer, **body: Any) -> httpx.Response:
    content = json.dumps({**GREEDY, "input": ASKED, **body})  # ASCII, so that it can spell what is no text
    headers = {"Content-Type": "application/json"}
    return httpx.post(f"{server.url}/v1/responses", content=content, headers=headers, timeout=60)


def chat(server: RunningServer, messages: list[dict[str, str]]) -> str | None:
    reply = server.client().chat.completions.create(model="r8", messages=messages, temperature=0, max_tokens=16)
    return reply.choices[0].message.content


def test_a_response_says_what_chat_completions_say(server: RunningServer) -> None:
    raw = server.client().responses.with_raw_response.create(
        input=ASKED, instructions="你是悟空。", metadata={"a": "b"}, user="me", **GREEDY
    )
    response = raw.parse()
    messages = [{"role": "system", "content": "你是悟空。"}, *QUESTION]
    assert response.output_text and response.output_text == chat(server, messages)
    assert (response.model, response.instructions, response.metadata) == ("r8", "你是悟空。", {"a": "b"})
    assert raw.headers["x-bianlian-adapter"] == "r8@1" and len(raw.headers["x-bianlian-digest"]) == 64
    [item] = response.output
    assert item.type == "message" and item.status == response.status == "incomplete"
    assert response.incomplete_details and response.incomplete_details.reason == "max_output_tokens"
    assert response.usage and response.usage.output_tokens == 16
    assert response.usage.total_tokens == response.usage.input_tokens + 16


def test_items_and_parts_are_the_conversation(server: RunningServer) -> None:
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "你是"}, {"type": "input_text", "text": "师父。"}],
        },
        {"type": "message", "role": "user", "content": "在吗？"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "在。", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": ASKED}]},
    ]
    said = [("system", "你是师父。"), ("user", "在吗？"), ("assistant", "在。"), ("user", ASKED)]
    response = server.client().responses.create(input=items, **GREEDY)  # type: ignore[arg-type]
    assert response.output_text == chat(server, [{"role": role, "content": text} for role, text in said])


def test_a_stream_is_the_typed_events_of_the_same_response(server: RunningServer) -> None:
    events = list(server.client().responses.create(input=ASKED, stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response  # type: ignore[union-attr]
    assert text == events[-4].text == last.output_text == ask(server).json()["output"][0]["content"][0]["text"]  # type: ignore[union-attr]
    assert last.id == events[0].response.id and last.output[0].id == events[2].item.id  # type: ignore[union-attr]
    with server.client().responses.stream(input=ASKED, **GREEDY) as stream:
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == text


def test_the_wire_names_every_event_and_has_no_done_marker(server: RunningServer) -> None:
    lines = ask(server, stream=True).text.split("\n\n")
    assert lines[-1] == "" and "[DONE]" not in lines[-2]
    for line in lines[:-1]:
        name, data = line.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_an_answer_that_ends_by_itself_is_completed(server: RunningServer) -> None:
    events = list(
        server.client().responses.create(input=ASKED, stream=True, extra_body={"guided_choice": ["好"]}, **GREEDY)
    )
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "好"
    assert events[-1].response.status == events[-1].response.output[0].status == "completed"  # type: ignore[union-attr]


class Hero(BaseModel):
    name: str = Field(max_length=8)
    strong: bool


def test_parse_with_a_pydantic_schema(server: RunningServer) -> None:
    body = GREEDY | {"max_output_tokens": 300, "temperature": 1, "top_p": 0.9}
    response = server.client().responses.parse(input=ASKED, text_format=Hero, extra_body={"seed": 3}, **body)  # type: ignore[arg-type]
    assert isinstance(response.output_parsed, Hero)
    plain = server.client().responses.create(input=ASKED, text={"format": {"type": "json_object"}}, **body)  # type: ignore[arg-type]
    assert plain.output_text.startswith("{")  # how it ends is the random model's mood


def test_previous_response_id_goes_on_and_instructions_do_not(server: RunningServer) -> None:
    client = server.client()
    first = client.responses.create(input=ASKED, instructions="你是悟空。", **GREEDY)
    second = client.responses.create(input="再说一遍。", previous_response_id=first.id, **GREEDY)
    said = {"role": "assistant", "content": first.output_text}
    assert second.output_text == chat(server, [*QUESTION, said, {"role": "user", "content": "再说一遍。"}])
    assert second.previous_response_id == first.id
    client.responses.delete(first.id)  # the second has the conversation itself
    third = client.responses.create(input="好。", previous_response_id=second.id, stream=True, **GREEDY)
    assert list(third)[-1].type == "response.incomplete"


def test_kept_responses_are_read_back_and_deleted(server: RunningServer) -> None:
    client = server.client()
    kept = client.responses.create(input=ASKED, **GREEDY)
    assert client.responses.retrieve(kept.id) == kept
    client.responses.delete(kept.id)
    for gone in (kept.id, client.responses.create(input=ASKED, store=False, **GREEDY).id):
        with pytest.raises(openai.NotFoundError, match="not kept"):
            client.responses.retrieve(gone)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(gone)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(input=ASKED, previous_response_id=gone, **GREEDY)
        assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_each_key_sees_its_own_responses(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path, api_key=["one", "two"])) as server:
        one, two = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
        kept = one.responses.create(input=ASKED, model="tiny", max_output_tokens=2)
        with pytest.raises(openai.NotFoundError):
            two.responses.retrieve(kept.id)
        with pytest.raises(openai.BadRequestError):
            two.responses.create(input=ASKED, model="tiny", previous_response_id=kept.id)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="no", max_retries=0).responses.retrieve(kept.id)
        assert one.responses.retrieve(kept.id).id == kept.id


def test_a_name_given_again_does_not_inherit_responses(tiny_base: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_base, tmp_path)
    with running_server(settings) as server:
        store = KeyStore(server.services.database)

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)

        kept = client(store.create("app")[1]).responses.create(input=ASKED, model="tiny", max_output_tokens=2)
        store.revoke("app")
        with pytest.raises(openai.NotFoundError):
            client(store.create("app")[1]).responses.retrieve(kept.id)


def test_logprobs_are_chats(server: RunningServer) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = ask(server, **asked).json()["output"][0]["content"][0]
    reply = server.client().chat.completions.create(
        model="r8", messages=QUESTION, temperature=0, max_tokens=16, logprobs=True, top_logprobs=2
    )
    assert reply.choices[0].logprobs and reply.choices[0].logprobs.content
    wanted = [entry.model_dump() for entry in reply.choices[0].logprobs.content]
    assert [entry["token"] for entry in part["logprobs"]] == [entry["token"] for entry in wanted]
    assert [e["logprob"] for e in part["logprobs"]] == pytest.approx([e["logprob"] for e in wanted], abs=1e-4)
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),  # this base's template has none
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": ""}]}, "input.0.call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "\ud800"}}, "metadata.a"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"a": 10**30}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}}, "text.format"),
        ({"guided_json": {"type": "no"}}, "guided_json"),
        ({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}, None),
        ({"max_output_tokens": 10**30}, "max_output_tokens"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], param: str | None
) -> None:
    reply = ask(server, **fields)
    assert reply.status_code == (404 if param == "model" else 400)
    assert reply.json()["error"]["param"] == param


def test_too_long_a_conversation_is_refused_with_both_numbers(server: RunningServer) -> None:
    error = ask(server, input="你好，" * 600).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input") and "512" in error["message"]


def test_leaving_a_stream_stops_the_work(server: RunningServer) -> None:
    stream = server.client().responses.create(input=ASKED, stream=True, model="r8", extra_body={"ignore_eos": True})
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    server.assert_nothing_held()


def test_a_failure_while_answering_is_an_event(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = server.services.engine.engine.runner
    steps = []

    def fail_later(batch: Any) -> Any:
        steps.append(batch)
        return run(batch) if len(steps) < 4 else 1 / 0

    run = runner.run
    monkeypatch.setattr(runner, "run", fail_later)
    events = list(server.client().responses.create(input=ASKED, stream=True, **GREEDY))
    assert events[-1].type == "response.failed" and events[-1].response.error
    assert events[-1].response.error.code == "server_error" and "division" in events[-1].response.error.message
    assert ask(server).status_code == 500


def stored(size: int) -> StoredResponse:
    return StoredResponse(b"", (b"x" * size,), ())


def test_the_store_keeps_the_latest_within_its_bounds() -> None:
    store = ResponseStore(max_keys=2, max_responses=3, max_bytes=100)
    for number in range(5):
        store.put("a", f"{number}", stored(10))
    assert [number for number in range(5) if store.get("a", f"{number}")] == [2, 3, 4]
    store.put("a", "large", stored(95))
    assert store.get("a", "large") and not store.get("a", "4")
    assert store.delete("a", "large") and not store.delete("a", "large")
    store.put("a", "again", stored(95))
    assert store.get("a", "again")  # what was deleted takes no room
    store.put("b", "x", stored(1))
    store.put("c", "x", stored(1))
    assert store.get("a", "again") is None and store.get("b", "x") and store.get("c", "x")
