"""Tool calls and thoughts over real HTTP, with the real openai SDK. The weights are random, so a grammar makes the
calls, and a bias ends the thoughts; what models say of themselves is read in test_parsing."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from serving.chat import Turn
from serving.engine.sequence import SamplingParams
from tests import templates, tiny
from tests.serving.running import RunningServer, running_server, settings_for

QUESTION: list[Any] = [{"role": "user", "content": "天气怎么样？"}]


class Weather(BaseModel):
    """The weather somewhere."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "北京"]
    days: int = Field(ge=0, le=9)


class Stop(BaseModel):
    """Stop asking."""

    model_config = ConfigDict(extra="forbid")

    why: Literal["done", "bored"]


TOOLS: list[Any] = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Stop)]
LOOSE = [json.loads(json.dumps(tool)) for tool in TOOLS]
for _tool in LOOSE:
    del _tool["function"]["strict"]
MODELS: dict[str, type[BaseModel]] = {"Weather": Weather, "Stop": Stop}
SPECIAL = {"mistral": ["[TOOL_CALLS]"], "mistral_named": ["[TOOL_CALLS]", "[ARGS]"], "llama": ["<|python_tag|>"]}
# One token each in the published models, though not a special one.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

Serve = Callable[[str], RunningServer]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A server whose base has one of the templates, kept for the module."""
    known = {**templates.TOOLS, "switched": templates.SWITCHED, "begun": templates.BEGUN, "mini": None}
    running: dict[str, RunningServer] = {}
    with ExitStack() as stack:

        def start(name: str) -> RunningServer:
            if name not in running:
                base = tmp_path_factory.mktemp(name) / "tiny"
                tokens = MARKS if name in ("switched", "begun", "glm") else ()
                tiny.save_base(base, template=known[name], special_tokens=SPECIAL.get(name, ()), tokens=tokens)
                home = tmp_path_factory.mktemp("home")
                running[name] = stack.enter_context(running_server(settings_for(base, home)))
            return running[name]

        yield start
        for server in running.values():
            server.assert_nothing_held()


def complete(server: RunningServer, **options: Any) -> Any:
    sent = {"model": "tiny", "messages": QUESTION, "max_tokens": 300, "seed": 1, "tools": LOOSE}
    return server.client().chat.completions.create(**{**sent, **options})


def refused(server: RunningServer, **body: Any) -> tuple[str | None, str]:
    sent = {"model": "tiny", "messages": QUESTION, "max_tokens": 40, **body}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=sent)
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]["param"], reply.json()["error"]["message"]


def checked(calls: Any) -> list[tuple[str, dict[str, Any]]]:
    """The calls, once their arguments have passed the models they follow."""
    for call in calls:
        MODELS[call.function.name].model_validate_json(call.function.arguments)
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


@pytest.mark.parametrize("name", templates.TOOLS)
def test_a_required_call_follows_the_schema_whatever_the_model_would_say(serve: Serve, name: str) -> None:
    server = serve(name)
    for seed in range(2):
        reply = complete(server, tool_choice="required", parallel_tool_calls=False, seed=seed)
        [choice] = reply.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len(checked(choice.message.tool_calls)) == 1
        assert choice.message.tool_calls[0].id


@pytest.mark.parametrize("name", templates.TOOLS)
def test_a_stream_gives_the_same_calls_in_pieces(serve: Serve, name: str) -> None:
    server = serve(name)
    options = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 5}
    whole = complete(server, **options).choices[0].message
    arguments, heads, reasons, content = "", [], [], ""
    for chunk in complete(server, stream=True, **options):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
        for piece in delta.tool_calls or []:
            assert piece.index == 0
            if piece.id:
                assert not arguments, "id and name come first"
                heads.append((piece.function.name, piece.type))
            arguments += piece.function.arguments or ""
    assert heads == [(whole.tool_calls[0].function.name, "function")]
    assert arguments == whole.tool_calls[0].function.arguments
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}
    assert content == "", "markers are no content"


def test_arguments_stream_as_they_are_written(serve: Serve) -> None:
    stream = complete(serve("hermes"), stream=True, tool_choice="required", parallel_tool_calls=False)
    pieces = [piece for chunk in stream for piece in chunk.choices[0].delta.tool_calls or []]
    assert len(pieces) > 3


def test_a_named_function_is_the_one_that_is_called(serve: Serve) -> None:
    for name in MODELS:
        choice = {"type": "function", "function": {"name": name}}
        calls = checked(complete(serve("hermes"), tool_choice=choice).choices[0].message.tool_calls)
        assert [called for called, _ in calls] == [name]


def test_the_sdk_parses_the_arguments(serve: Serve) -> None:
    reply = (
        serve("hermes")
        .client()
        .chat.completions.parse(
            model="tiny", messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=2
        )
    )
    [call] = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, (Weather, Stop))
    with (
        serve("hermes")
        .client()
        .chat.completions.stream(
            model="tiny", messages=QUESTION, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=2
        ) as stream
    ):
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert streamed[0].function.parsed_arguments == call.function.parsed_arguments


@pytest.mark.parametrize("name", templates.TOOLS)
def test_a_call_is_answered_and_the_conversation_goes_on(serve: Serve, name: str) -> None:
    server = serve(name)
    said = complete(server, tool_choice="required", parallel_tool_calls=False).choices[0].message
    [call] = said.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "雨<|im_end|>"}
    messages = [*QUESTION, said, result]
    seen = prompts_of(server)
    answer = complete(server, messages=messages, tool_choice="none", max_tokens=8).choices[0].message
    assert answer.content and answer.tool_calls is None
    prompt = seen[-1]
    assert call.function.name in prompt and "雨" in prompt, "call and result are in the prompt"
    assert "\n雨<|im_end|>" not in prompt, "a result cannot end its turn"
    arguments = json.loads(call.function.arguments)
    assert all(str(value) in prompt for value in arguments.values())


def prompts_of(server: RunningServer) -> list[str]:
    """Prompts as they reach the engine from now on, as text."""
    engine, seen = server.services.engine.engine, []
    add = type(engine).add

    def noted(request: Any) -> None:
        seen.append(engine.base.tokenizer.decode(list(request.prompt_ids)))
        add(engine, request)

    engine.add = noted  # type: ignore[method-assign]
    return seen


def test_tools_are_described_to_the_model_unless_it_may_not_call_them(serve: Serve) -> None:
    server = serve("hermes")
    seen = prompts_of(server)
    complete(server, max_tokens=1)
    complete(server, max_tokens=1, tool_choice="none")
    assert "The weather somewhere." in seen[0] and '"Stop"' in seen[0]
    assert "The weather somewhere." not in seen[1]


def test_a_model_left_alone_answers_as_it_does_without_tools_in_the_way(serve: Serve) -> None:
    """auto: text streams as content; strict functions do not hinder it."""
    for tools in (LOOSE, TOOLS):
        reply = complete(serve("hermes"), tools=tools, max_tokens=24, temperature=0).choices[0]
        assert reply.message.content and reply.message.tool_calls is None and reply.finish_reason == "length"
        stream = complete(serve("hermes"), tools=tools, max_tokens=24, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == reply.message.content


@pytest.mark.parametrize("name", templates.TOOLS)
def test_strict_functions_leave_text_alone_in_every_format(serve: Serve, name: str) -> None:
    reply = complete(serve(name), tools=TOOLS, max_tokens=6, temperature=0).choices[0]
    free = complete(serve(name), tools=LOOSE, max_tokens=6, temperature=0).choices[0]
    assert reply.message.content == free.message.content


def test_what_begins_as_a_call_of_a_strict_function_ends_as_one(serve: Serve) -> None:
    server = serve("glm")
    begin = {str(server.services.base.tokenizer.convert_tokens_to_ids("<tool_call>")): 100}
    choice = complete(server, tools=TOOLS, logit_bias=begin, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls" and len(checked(choice.message.tool_calls)) == 1


def test_calls_the_model_makes_by_itself_are_told_from_text(serve: Serve) -> None:
    """Here a regular expression stands for a model that knows how."""
    server = serve("hermes")
    call = '<tool_call>\n{"name": "Stop", "arguments": {"why": "done"}}\n</tool_call>'
    spoken = {
        f"Sure.\n{call}": ("Sure.", 1, "tool_calls"),
        f"Both:\n{call}\n{call}\n": ("Both:", 2, "tool_calls"),
        "Oh, <tool_call>{oops}</tool_call>": ("Oh, <tool_call>{oops}</tool_call>", 0, "stop"),
    }
    for text, (content, count, reason) in spoken.items():
        # The expression and calls are alternatives; the bias chooses the former.
        [first] = server.services.base.tokenizer.encode(text[0], add_special_tokens=False)
        pattern = re.escape(text).replace("\\\n", "\\n")
        forced = {"extra_body": {"guided_regex": pattern}, "logit_bias": {str(first): 100}}
        choice = complete(server, **forced).choices[0]
        assert (choice.message.content, choice.finish_reason) == (content, reason)
        assert len(checked(choice.message.tool_calls or [])) == count
        streamed, names = "", []
        for chunk in complete(server, **forced, stream=True):
            streamed += chunk.choices[0].delta.content or ""
            names += [piece.function.name for piece in chunk.choices[0].delta.tool_calls or [] if piece.id]
        assert (streamed, len(names)) == (content, count)
        alone = complete(server, **forced, parallel_tool_calls=False).choices[0]
        assert len(alone.message.tool_calls or []) == min(count, 1) and alone.finish_reason == reason


def test_several_calls_in_one_answer(serve: Serve) -> None:
    """An answer that may not end goes on with another call, unless the caller wants only one."""
    server = serve("glm")
    options = {"tool_choice": "required", "max_tokens": 250, "logit_bias": {str(end_of_turn(server)): -100}}
    choice = complete(server, **options).choices[0]
    calls = choice.message.tool_calls
    assert len(calls) > 1 and len({call.id for call in calls}) == len(calls)
    checked(calls)
    alone = complete(server, **options, parallel_tool_calls=False).choices[0]
    assert len(alone.message.tool_calls) == 1 and alone.finish_reason == "tool_calls"


def end_of_turn(server: RunningServer) -> int:
    return int(server.services.base.tokenizer.eos_token_id)


def think_briefly(server: RunningServer) -> dict[str, float]:
    """A bias that begins thoughts, most times, and ends them soon."""
    ids = server.services.base.tokenizer.convert_tokens_to_ids
    return {str(ids("<think>")): 8, str(ids("</think>")): 7}


def test_content_that_follows_a_schema_and_calls_are_alternatives(serve: Serve) -> None:
    schema = {"name": "s", "schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}
    schema["schema"]["additionalProperties"] = False
    server = serve("glm")
    call = str(server.services.base.tokenizer.convert_tokens_to_ids("<tool_call>"))
    options = {"parallel_tool_calls": False, "response_format": {"type": "json_schema", "json_schema": schema}}
    calling = complete(server, **options, logit_bias={call: 100}).choices[0]
    assert calling.finish_reason == "tool_calls" and checked(calling.message.tool_calls)
    answering = complete(server, **options, logit_bias={call: -100}).choices[0]
    assert answering.finish_reason == "stop" and set(json.loads(answering.message.content)) == {"x"}


def test_an_answer_cut_inside_a_call_says_so(serve: Serve) -> None:
    reply = complete(serve("hermes"), tool_choice="required", max_tokens=12).choices[0]
    assert reply.finish_reason == "length"


NAMED = {"type": "function", "function": {"name": "Elsewhere"}}
BAD_SCHEMA = [{"type": "function", "function": {"name": "f", "parameters": {"not": {"type": "string"}}}}]
CALLED = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": []}, "tools", "empty"),
        ({"tools": LOOSE * 2}, "tools", "two functions called 'Weather'"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "match"),
        ({"tools": LOOSE, "tool_choice": NAMED}, "tool_choice", "Elsewhere"),
        ({"tools": LOOSE, "tool_choice": "sometimes"}, "tool_choice", "'required'"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": BAD_SCHEMA, "tool_choice": "required"}, "tools.0.function.parameters", '"not"'),
        ({"functions": []}, "functions", "not supported"),
        (
            {"messages": [*QUESTION, {"role": "tool", "tool_call_id": "a", "content": "x"}]},
            "messages.1.tool_call_id",
            "no assistant",
        ),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x"}]}, "messages.1", "tool_call_id"),
        ({"messages": [*QUESTION, CALLED]}, "messages.1.tool_calls.0.function.arguments", "required"),
        ({"thinking": True}, "thinking", "no place for thoughts"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_is_refused_by_name(serve: Serve, body: dict[str, Any], param: str | None, words: str) -> None:
    found, message = refused(serve("hermes"), **body)
    assert found == param and words in message


def test_schemas_nested_beyond_reason_are_refused(serve: Serve) -> None:
    deep = '{"items": ' * 3000 + "{}" + "}" * 3000
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
    body = f'{{"model": "tiny", "messages": {json.dumps(QUESTION)}, "tool_choice": "required", "tools": [{tool}]}}'
    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{serve('hermes').url}/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400 and "error" in reply.json()


@pytest.mark.parametrize("surrogate", ["\\ud800"])
def test_half_a_surrogate_pair_is_refused_wherever_it_hides(serve: Serve, surrogate: str) -> None:
    tools = json.dumps(LOOSE).replace("The weather somewhere.", surrogate)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": f'{{"x": "{surrogate}"}}'}}
    for extra in (f'"tools": {tools}', f'"messages": [{json.dumps({"role": "assistant", "tool_calls": [call]})}]'):
        body = f'{{"model": "tiny", "messages": {json.dumps(QUESTION)}, {extra}}}'
        headers = {"content-type": "application/json"}
        reply = httpx.post(f"{serve('hermes').url}/v1/chat/completions", content=body, headers=headers)
        assert reply.status_code == 400, reply.text


def test_a_template_without_tools_refuses_them_and_says_why(serve: Serve) -> None:
    for body in ({"tools": LOOSE}, {"tools": []}):
        param, message = refused(serve("mini"), **body)
        assert param == "tools" and "not supported" in message and "no place for tools" in message
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    param, message = refused(serve("mini"), messages=[*QUESTION, {"role": "assistant", "tool_calls": [call]}])
    assert param == "messages" and "no place for tools" in message


# Thinking.


def test_the_switch_is_one_for_prompt_and_answer(serve: Serve) -> None:
    server = serve("switched")
    seen = prompts_of(server)
    for extra in ({"thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
        complete(server, tools=openai.omit, extra_body=extra, max_tokens=1)
    for extra in ({}, {"thinking": False}, {"reasoning_effort": "none"}):
        complete(server, tools=openai.omit, extra_body=extra, max_tokens=1)
    assert [prompt.endswith("</think>\n\n") for prompt in seen] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"thinking": True, "reasoning_effort": "none"}, "thinking and reasoning_effort contradict"),
        ({"thinking": False, "chat_template_kwargs": {"enable_thinking": True}}, "contradict"),
        ({"reasoning_effort": "high"}, "only reasoning_effort 'none'"),
        ({"chat_template_kwargs": {"enable_thinking": True, "language": "fr"}}, "language"),
    ],
)
def test_contradictions_about_thinking_are_errors(serve: Serve, body: dict[str, Any], words: str) -> None:
    param, message = refused(serve("switched"), **body)
    assert words in message and param and param.split(".")[0] in body


def test_thinking_that_has_no_switch_cannot_be_turned_off(serve: Serve) -> None:
    param, message = refused(serve("begun"), thinking=False)
    assert param == "thinking" and "cannot be turned off" in message


def test_an_answer_begun_inside_its_thoughts_is_read_so(serve: Serve) -> None:
    """Random weights never end them: everything is thought, nothing content."""
    server = serve("begun")
    choice = complete(server, tools=openai.omit, max_tokens=16, temperature=0).choices[0]
    assert choice.message.content == "" and len(choice.message.reasoning_content) > 3
    thoughts, content = "", ""
    for chunk in complete(server, tools=openai.omit, max_tokens=16, temperature=0, stream=True):
        thoughts += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        content += chunk.choices[0].delta.content or ""
    assert (thoughts, content) == (choice.message.reasoning_content, "")


@pytest.mark.parametrize(("name", "extra"), [("begun", {}), ("switched", {"thinking": True})])
def test_a_grammar_holds_after_the_thoughts(serve: Serve, name: str, extra: dict[str, Any]) -> None:
    server = serve(name)
    schema = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"]}
    wrapped = {"name": "s", "schema": {**schema, "additionalProperties": False}}
    thoughts = []
    for seed in range(6):
        choice = complete(
            server,
            tools=openai.omit,
            seed=seed,
            logit_bias=think_briefly(server),
            response_format={"type": "json_schema", "json_schema": wrapped},
            extra_body=extra,
        ).choices[0]
        if choice.finish_reason == "stop":
            assert json.loads(choice.message.content)["x"] in ("a", "b")
            thoughts.append(getattr(choice.message, "reasoning_content", ""))
    assert any(thoughts) and "</think>" not in "".join(thoughts)


def test_thoughts_of_earlier_turns_are_left_to_the_template(serve: Serve) -> None:
    server = serve("switched")
    seen = prompts_of(server)
    for said in (
        {"role": "assistant", "content": "Hi.", "reasoning_content": "SECRET"},
        {"role": "assistant", "content": "<think>SECRET</think>Hi."},
    ):
        complete(server, messages=[*QUESTION, said, *QUESTION], tools=openai.omit, max_tokens=1)
    assert all("SECRET" not in prompt and "Hi." in prompt for prompt in seen)


def test_calls_come_after_thoughts(serve: Serve) -> None:
    server = serve("switched")
    options: dict[str, Any] = {
        "tool_choice": {"type": "function", "function": {"name": "Stop"}},
        "logit_bias": think_briefly(server),
        "extra_body": {"thinking": True},
    }
    for seed in range(8):
        choice = complete(server, **options, seed=seed).choices[0]
        if choice.finish_reason == "tool_calls" and getattr(choice.message, "reasoning_content", None):
            break
    assert checked(choice.message.tool_calls)[0][0] == "Stop" and choice.message.reasoning_content
    order = []
    for chunk in complete(server, **options, seed=seed, stream=True):
        delta = chunk.choices[0].delta
        order += ["thought"] * bool(getattr(delta, "reasoning_content", None)) + ["call"] * bool(delta.tool_calls)
        assert not delta.content
    assert order == sorted(order, reverse=True) and set(order) == {"thought", "call"}


def test_compare_tells_thoughts_from_content(serve: Serve) -> None:
    body = {"messages": QUESTION, "lanes": [{"model": "tiny"}], "max_tokens": 12}
    with httpx.stream("POST", f"{serve('begun').url}/v1/compare", json=body) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    kinds = {event["type"] for event in events}
    assert "reasoning" in kinds and "delta" not in kinds
    seen = prompts_of(serve("switched"))
    httpx.post(f"{serve('switched').url}/v1/compare", json={**body, "thinking": True}).raise_for_status()
    assert not seen[0].endswith("</think>\n\n")


# Grammars that used to break in the middle of an answer.


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_regex": r"x<\|im_end\|>y"},
        {"guided_choice": ["a<|im_start|>b"]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"const": "<|im_end|>"}}}},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_special_tokens_in_a_grammar_are_text(serve: Serve, extra: dict[str, Any]) -> None:
    for seed in range(4):
        reply = complete(serve("mini"), tools=openai.omit, seed=seed, extra_body=extra).choices[0]
        assert reply.finish_reason == "stop"
        assert reply.message.content in ("x<|im_end|>y", "a<|im_start|>b", '"<|im_end|>"')


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(count)}}


def test_many_optional_properties_work_and_too_many_are_refused_at_once(serve: Serve) -> None:
    server = serve("mini")
    close = server.services.base.tokenizer.encode("}", add_special_tokens=False)
    reply = complete(
        server,
        tools=openai.omit,
        logit_bias={str(token): 100 for token in close},
        extra_body={"guided_json": {**wide(600), "additionalProperties": False}},
    ).choices[0]
    assert isinstance(json.loads(reply.message.content), dict)
    for field, value in (
        ("guided_json", wide(2001)),
        ("structured_outputs", {"json": wide(2001)}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": wide(2001)}}),
    ):
        param, message = refused(server, **{field: value})
        assert param == field and "2001 properties" in message and "2000" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guided_json", {"not": {}}),
        ("guided_regex", "(?=a)b"),
        ("structured_outputs", {"regex": "["}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "strin"}}}),
    ],
)
def test_a_grammar_that_is_refused_is_named_as_it_was_sent(serve: Serve, field: str, value: Any) -> None:
    param, message = refused(serve("mini"), **{field: value})
    assert param == field and field in message


def test_marks_that_are_special_tokens_are_read_and_never_shown(serve: Serve) -> None:
    """[TOOL_CALLS] is one token here, which the text of an answer otherwise leaves out."""
    server = serve("mistral_named")
    tokenizer = server.services.base.tokenizer
    marker = tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")
    assert tokenizer.decode([marker], skip_special_tokens=True) == ""
    reply = complete(server, tool_choice="required", logprobs=True, parallel_tool_calls=False).choices[0]
    assert reply.logprobs.content[0].token == "[TOOL_CALLS]"
    assert reply.message.content is None and checked(reply.message.tool_calls)
    assert Turn(model="tiny", params=SamplingParams()).tools is None
