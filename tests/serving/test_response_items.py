"""Function calls and thoughts on POST /v1/responses, with the real openai SDK. As in test_tools the weights are random:
a grammar makes the calls, and a bias ends the thoughts."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters.errors import Invalid
from serving.api.response_input import conversation, items_of
from tests import templates, tiny
from tests.openai_judge import DESCRIPTION, Judge
from tests.serving.running import RunningServer, running_server, settings_for
from tests.serving.test_tools import MARKS, MODELS, SPECIAL, Stop, Weather, prompts_of, think_briefly

ASKED = "天气怎么样？"
TOOLS: list[Any] = [
    {"type": "function", "name": model.__name__, "parameters": model.model_json_schema(), "strict": False}
    for model in (Weather, Stop)
]
CALL = {"type": "function_call", "call_id": "a", "name": "f"}
ONE_OF_TWO = {
    "type": "object",
    "properties": {"x": {"enum": ["a", "b"]}},
    "required": ["x"],
    "additionalProperties": False,
}
ONE_CALL = {"tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module", params=["switched", "mistral"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that thinks and passes arguments on as they come; and one whose calls have ids of their own."""
    name = request.param
    template = templates.SWITCHED if name == "switched" else templates.TOOLS[name]
    base = tmp_path_factory.mktemp(name) / "tiny"
    tokens = MARKS if name == "switched" else ()
    tiny.save_base(base, template=template, special_tokens=SPECIAL.get(name, ()), tokens=tokens)
    with running_server(settings_for(base, tmp_path_factory.mktemp("home"))) as running:
        yield running
        running.assert_nothing_held()


@pytest.fixture
def thinker(server: RunningServer) -> RunningServer:
    if not server.services.chat.answers.reasoning:
        pytest.skip("its template has no thoughts")
    return server


def sent(**options: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": ASKED, "max_output_tokens": 300, "tools": TOOLS, **options}


def create(server: RunningServer, seed: int = 1, **options: Any) -> Any:
    extra = {"seed": seed, **options.pop("extra_body", {})}
    return server.client().responses.create(**sent(**options), extra_body=extra)


def arguments_of(item: Any) -> dict[str, Any]:
    """A call's, once they have passed the model they follow."""
    assert (item.type, item.status) == ("function_call", "completed") and item.call_id and item.id
    MODELS[item.name].model_validate_json(item.arguments)
    return json.loads(item.arguments)


def test_a_required_call_is_an_item_that_follows_the_schema(server: RunningServer) -> None:
    for seed in range(2):
        response = create(server, seed, **ONE_CALL)
        [call] = response.output
        arguments_of(call)
        assert response.status == "completed" and response.output_text == ""
        assert [tool.name for tool in response.tools] == ["Weather", "Stop"]
        assert (response.tool_choice, response.parallel_tool_calls) == ("required", False)
        chat = server.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": ASKED}],
            tools=[{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in TOOLS],
            max_tokens=300,
            seed=seed,
            **ONE_CALL,
        )
        [wanted] = chat.choices[0].message.tool_calls
        assert (call.name, call.arguments) == (wanted.function.name, wanted.function.arguments)
    named = create(server, tool_choice={"type": "function", "name": "Stop"})
    assert [call.name for call in named.output] == ["Stop"] and named.tool_choice.name == "Stop"


def test_a_stream_builds_the_same_call_up(server: RunningServer) -> None:
    [whole] = create(server, 5, **ONE_CALL).output
    events = list(create(server, 5, stream=True, **ONE_CALL))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    added, done = events[2].item, events[-2].item
    assert (added.name, added.arguments, added.status) == (whole.name, "", "in_progress")
    assert "".join(event.delta for event in events[3:-3]) == events[-3].arguments == whole.arguments
    assert done == events[-1].response.output[0] and (done.id, done.call_id) == (added.id, added.call_id)
    with server.client().responses.stream(**sent(**ONE_CALL), extra_body={"seed": 5}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        assert snapshots[-1] == stream.get_final_response().output[0].arguments == whole.arguments


def test_the_sdk_parses_the_arguments_sync_and_async(server: RunningServer) -> None:
    tools = [
        {"type": "function", "name": f["function"]["name"], "parameters": f["function"]["parameters"], "strict": True}
        for f in map(openai.pydantic_function_tool, (Weather, Stop))
    ]
    parsed = server.client().responses.parse(**sent(tools=tools), **ONE_CALL, extra_body={"seed": 2})
    [call] = parsed.output
    assert call.type == "function_call" and call.parsed_arguments == json.loads(call.arguments)

    async def streamed() -> Any:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client,
            client.responses.stream(**sent(tools=tools), **ONE_CALL, extra_body={"seed": 2}) as stream,
        ):
            return await stream.get_final_response()

    [again] = asyncio.run(streamed()).output
    assert (again.name, again.parsed_arguments) == (call.name, call.parsed_arguments)


def test_a_call_is_answered_by_id_or_with_the_whole_conversation(server: RunningServer) -> None:
    first = create(server, **ONE_CALL)
    [call] = first.output
    answered = {"type": "function_call_output", "call_id": call.call_id, "output": "晴，二十度"}
    seen = prompts_of(server)
    options = {"tool_choice": "none", "max_output_tokens": 4, "temperature": 0}
    going_on = create(server, input=[answered], previous_response_id=first.id, **options)
    whole = create(server, input=[{"role": "user", "content": ASKED}, call, answered], **options)
    parts = [{"type": "input_text", "text": "晴，"}, {"type": "input_text", "text": "二十度"}]
    create(server, input=[{"role": "user", "content": ASKED}, call, answered | {"output": parts}], **options)
    assert going_on.output_text == whole.output_text and len(set(seen)) == 1
    assert "晴，二十度" in seen[0] and call.name in seen[0] and ASKED in seen[0]


def test_input_items_are_all_that_was_answered(server: RunningServer) -> None:
    client = server.client()
    first = create(
        server, input=[{"role": "developer", "content": "短。"}, {"role": "user", "content": ASKED}], **ONE_CALL
    )
    [call] = first.output
    answered = {"type": "function_call_output", "call_id": call.call_id, "output": "晴"}
    second = create(server, input=[answered], previous_response_id=first.id, tool_choice="none", max_output_tokens=4)
    listed = client.responses.input_items.list(second.id, order="asc", limit=2)
    kinds = ["message", "message", "function_call", "function_call_output"]
    items = list(listed)  # every page of them
    assert [item.type for item in items] == kinds and listed.has_more
    assert [item.role for item in items[:2]] == ["developer", "user"]
    assert items[1].content[0].text == ASKED and items[2].id == call.id and items[3].output == "晴"
    assert [item.id for item in client.responses.input_items.list(second.id)] == [item.id for item in reversed(items)]
    after = client.responses.input_items.list(second.id, order="asc", after=items[2].id)
    assert [item.id for item in after.data] == [items[3].id] and not after.has_more
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.input_items.list(second.id, after="msg_0")
    assert caught.value.param == "after"
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.input_items.list("resp_0")
    for query, param in (("limit=0", "limit"), ("order=up", "order"), ("include[]=x", "include[]")):
        reply = httpx.get(f"{server.url}/v1/responses/{second.id}/input_items?{query}")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_call_that_was_cut_is_shown_and_not_gone_on_from(server: RunningServer) -> None:
    cut = create(server, max_output_tokens=14, tool_choice={"type": "function", "name": "Weather"})
    assert cut.status == "incomplete" and all(item.status == "incomplete" for item in cut.output)
    further = create(server, input="好。", previous_response_id=cut.id, tool_choice="none", max_output_tokens=2)
    assert "function_call" not in [item.type for item in server.client().responses.input_items.list(further.id)]


def test_thoughts_are_an_item_and_are_counted(thinker: RunningServer) -> None:
    ids = thinker.services.base.tokenizer.convert_tokens_to_ids
    extra = {"thinking": True, "logit_bias": think_briefly(thinker), "guided_json": ONE_OF_TWO}
    options = {"tools": [], "extra_body": extra, "max_output_tokens": 60}
    thought = 0
    for seed in range(6):
        response = create(thinker, seed, include=["message.output_text.logprobs"], **options)
        counted = response.usage.output_tokens_details.reasoning_tokens
        kinds = [item.type for item in response.output]
        if kinds != ["reasoning", "message"]:
            # Marks with nothing between them; or all of it thought.
            assert counted == response.usage.output_tokens if "reasoning" in kinds else counted in (0, 2)
            continue
        thought += 1
        reasoning, message = response.output
        text = "<think>" + reasoning.content[0].text + "</think>"
        assert message.content[0].text and "<think>" not in response.output_text and reasoning.summary == []
        # The oracle: what is no thought is text, and perhaps the end of the turn.
        rest = response.usage.output_tokens - counted
        assert rest - len(message.content[0].logprobs) in (0, 1)
        assert counted >= 3 and ids("</think>") in thinker.services.base.tokenizer.encode(text)
        events = list(create(thinker, seed, stream=True, **options))
        told = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert "".join(told) == reasoning.content[0].text
        assert [i.type for i in events[-1].response.output] == kinds
        assert events[-1].response.usage == response.usage
        chat = thinker.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": ASKED}],
            max_tokens=60,
            seed=seed,
            extra_body=extra,
        )
        assert chat.usage.completion_tokens_details.reasoning_tokens == counted
        assert chat.choices[0].message.reasoning_content == reasoning.content[0].text
        going_on = create(thinker, input="还有呢？", previous_response_id=response.id, **options)
        assert going_on.usage.input_tokens > response.usage.input_tokens
        sent_back = [{"role": "user", "content": ASKED}, *response.output, {"role": "user", "content": "还有呢？"}]
        again = create(thinker, input=sent_back, **options)
        assert (again.output_text, again.usage.input_tokens) == (going_on.output_text, going_on.usage.input_tokens)
    assert thought > 1


def test_calls_come_after_thoughts(thinker: RunningServer) -> None:
    options = {"tool_choice": {"type": "function", "name": "Stop"}}
    options["extra_body"] = {"thinking": True, "logit_bias": think_briefly(thinker)}
    found = [create(thinker, seed, **options) for seed in range(8)]
    both = next(r for r in found if r.status == "completed" and len(r.output) > 1)
    assert [item.type for item in both.output] == ["reasoning", "function_call"]
    arguments_of(both.output[1])
    assert 0 < both.usage.output_tokens_details.reasoning_tokens < both.usage.output_tokens


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "web_search"),
        ({"tools": [*TOOLS, {"type": "function", "name": "a b"}]}, "tools.2.name", "match"),
        ({"tools": TOOLS * 2}, "tools", "two functions"),
        ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "tools.0.defer_loading", "not supported"),
        ({"tools": [TOOLS[0] | {"parameters": {"not": {"type": "string"}}, "strict": True}]}, "tools.0.parameters", ""),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "function", "name": "Elsewhere"}}, "tool_choice", "Elsewhere"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice", "takes"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "only reasoning.effort 'none'"),
        ({"reasoning": {"effort": "none"}, "thinking": True}, "thinking", "contradict"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "item_reference"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]}, "input.0.call_id", "'a'"),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}]},
            "input.0.arguments",
            "",
        ),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input.0.arguments", "required"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input.0.encrypted_content", ""),
        ({"input": [{"type": "reasoning", "summary": [{"text": "x"}]}]}, "input.0.summary", ""),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type", "input_file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], param: str, words: str
) -> None:
    reply = httpx.post(f"{server.url}/v1/responses", json=sent(**fields))
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param and words in error["message"], error


@pytest.mark.skipif(DESCRIPTION is None, reason="OpenAI's API description is not at hand")
def test_items_and_events_are_valid_by_openais_own_schemas(server: RunningServer) -> None:
    judge = Judge(Path(os.path.expanduser(str(DESCRIPTION))))
    thinks = bool(server.services.chat.answers.reasoning)
    bodies = [sent(**ONE_CALL), sent(tool_choice={"type": "function", "name": "Stop"}), sent(tool_choice="none")]
    if thinks:
        bias = think_briefly(server)
        bodies.append(sent(tools=[], thinking=True, logit_bias=bias, guided_json=ONE_OF_TWO, max_output_tokens=60))
    for body in bodies:
        whole = httpx.post(f"{server.url}/v1/responses", json=body, timeout=60).json()
        judge.assert_valid("Response", whole)
        stream = httpx.post(f"{server.url}/v1/responses", json=body | {"stream": True}, timeout=60).text
        for line in stream.splitlines():
            if line.startswith("data: "):
                judge.assert_valid("ResponseStreamEvent", json.loads(line[6:]))
        further = body | {"input": "好。", "previous_response_id": whole["id"], "max_output_tokens": 2}
        following = httpx.post(f"{server.url}/v1/responses", json=further, timeout=60).json()
        listed = httpx.get(f"{server.url}/v1/responses/{following['id']}/input_items").json()
        judge.assert_valid("ResponseItemList", listed)


def test_an_answers_items_are_one_message() -> None:
    call = {"type": "function_call", "name": "f", "arguments": '{"a": 1}'}
    items = [
        {"role": "user", "content": "Q"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "Wait."},
        call | {"call_id": "x"},
        call | {"call_id": "y"},
        {"role": "assistant", "content": " Soon."},
        {"type": "function_call_output", "call_id": "y", "output": "2", "name": "f"},
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "B"},
    ]
    said = conversation(items_of(items[:4]), items_of(items[4:]))
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert (said[1]["content"], said[1]["reasoning_content"]) == ("Wait. Soon.", "hm")
    assert [c["id"] for c in said[1]["tool_calls"]] == ["x", "y"]
    assert said[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert said[2] == {"role": "tool", "content": "2", "tool_call_id": "y", "name": "f"}
    with pytest.raises(Invalid) as caught:
        conversation(items_of(items[:5]), items_of([{"type": "function_call_output", "call_id": "z", "output": ""}]))
    assert caught.value.param == "input.0.call_id"
