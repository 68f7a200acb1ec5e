"""Thoughts and tool calls read from an answer's text, however it is cut into pieces."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.reasoning import KNOWN_MARKS
from adapters.renderer import ChatRenderer, Message
from serving.parsing.answer_format import AnswerFormat, answer_format
from serving.parsing.calls import CallFormat
from serving.parsing.hermes import Hermes
from serving.parsing.llama import Llama
from serving.parsing.mistral import MistralList, MistralNamed
from serving.parsing.pieces import Pieces
from serving.parsing.reasoning import ReasoningReader
from serving.parsing.tagged import GLM, QWEN_CODER, Tagged
from serving.parsing.tools import Function
from tests import templates, tiny

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"enum": ["C", "F"]}},
    "required": ["city"],
}
WEATHER = Function("weather", {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}, SCHEMA)
FORMATS: dict[str, CallFormat] = {
    "hermes": Hermes(),
    "qwen_coder": Tagged(QWEN_CODER),
    "glm": Tagged(GLM),
    "llama": Llama(),
    "mistral": MistralList(),
    "mistral_named": MistralNamed(),
}

# One call of each format, {"city": "Paris, ]}", "days": 3}.
ARGUMENTS = {"city": 'Pa"r]}\nis', "days": 3}
SPELLED = json.dumps(ARGUMENTS)
ONE: dict[str, str] = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {SPELLED}}}\n</tool_call>',
    "qwen_coder": "<tool_call>\n<function=weather>\n<parameter=city>\n" + ARGUMENTS["city"] + "\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "glm": f"<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{ARGUMENTS['city']}</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "llama": f'{{"name": "weather", "parameters": {SPELLED}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "weather", "arguments": {SPELLED}}}]',
    "mistral_named": f"[TOOL_CALLS]weather[ARGS]{SPELLED}",
}
TWO = {
    **{name: f"{one}\n{one}" for name, one in ONE.items()},
    "llama": f"{ONE['llama']}; {ONE['llama']}",
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {SPELLED}}}, '
    f'{{"arguments": {SPELLED}, "name": "weather", "id": "abcdefghi"}}]',
}

Read = tuple[str, str, list[tuple[str | None, str]]]


def read(reader: Any, pieces: list[str]) -> Read:
    """(content, thoughts, [(name, arguments)]) of a whole stream; ids are random and must only be there."""
    content, reasoning, calls = "", "", {}
    for found in [*map(reader.feed, pieces), reader.finish()]:
        assert isinstance(found, Pieces)
        content += found.content
        reasoning += found.reasoning
        for piece in found.calls:
            if piece.index not in calls:
                assert piece.id and piece.name, "the first piece says which call it is"
                calls[piece.index] = (piece.name, piece.arguments)
            else:
                assert piece.id is None and piece.name is None
                calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.arguments)
    assert sorted(calls) == list(range(len(calls)))
    return content, reasoning, list(calls.values())


def reader_of(name: str, *, live: bool = False) -> Any:
    return FORMATS[name].reader([WEATHER], live=live)


def cut(text: str, places: list[int]) -> list[str]:
    at = sorted({place % (len(text) + 1) for place in places})
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


def format_of(template: str | None) -> AnswerFormat:
    tokenizer = tiny.tokenizer_with(template)
    return answer_format(ChatRenderer(tokenizer, frozenset([tokenizer.eos_token_id])))


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_of_calls_is_found_from_the_template(name: str) -> None:
    found = format_of(templates.TOOLS[name])
    assert type(found.calls) is type(FORMATS[name])
    assert found.reasoning is None


def test_what_a_template_lacks_is_found_too() -> None:
    assert "no place for tools" in format_of(None).no_tools
    assert "form that is not known" in format_of(templates.UNKNOWN).no_tools
    switched, begun = format_of(templates.SWITCHED), format_of(templates.BEGUN)
    assert switched.reasoning == begun.reasoning == KNOWN_MARKS[0]
    assert switched.switchable and not begun.switchable


# Published templates as TRL brings them along; it is not imported, which would take seconds.
[TRL] = find_spec("trl").submodule_search_locations


@pytest.mark.parametrize(
    ("template", "calls", "thinks", "switchable"),
    [
        ("qwen2_5", Hermes, False, False),
        ("qwen3", Hermes, True, True),
        ("qwen3_instruct_2507", Hermes, False, False),
        ("qwen3_6", QWEN_CODER, True, True),
        ("glm4moe", GLM, True, True),
        ("llama3_1", Llama, False, False),
        ("deepseek_r1_distill", type(None), True, False),
        ("gemma", type(None), False, False),
    ],
)
def test_published_templates_are_understood(template: str, calls: Any, thinks: bool, switchable: bool) -> None:
    tokenizer = tiny.tokenizer_with(
        (Path(TRL) / "chat_templates" / f"{template}.jinja").read_text(), special_tokens=["<|eot_id|>"]
    )
    stops = frozenset([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")])
    found = answer_format(ChatRenderer(tokenizer, stops))
    assert (found.calls.layout if isinstance(found.calls, Tagged) else type(found.calls)) is calls
    assert (found.reasoning is not None, found.switchable) == (thinks, switchable)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_read_whatever_pieces_they_come_in(name: str, live: bool) -> None:
    for text, count in ((ONE[name], 1), (TWO[name], 2)):
        for size in (1, 2, 3, 7, len(text)):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            content, _, calls = read(reader_of(name, live=live), pieces)
            assert content == ""
            assert [(called, json.loads(arguments)) for called, arguments in calls] == [("weather", ARGUMENTS)] * count
            if name in ("hermes", "llama", "mistral", "mistral_named"):
                assert {arguments for _, arguments in calls} == {SPELLED}, "as they were written"


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "mistral_named"])
def test_arguments_are_passed_on_as_they_arrive_where_a_grammar_holds(name: str) -> None:
    text = ONE[name]
    reader = reader_of(name, live=True)
    half = text.index("days")
    early = reader.feed(text[:half])
    assert early.calls[0].name == "weather" and early.calls[0].arguments == SPELLED[: SPELLED.index("days")]
    held = reader_of(name)
    assert held.feed(text[:half]).calls == (), "without one it may yet turn out to be none"


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "llama"])
def test_text_before_a_call_streams_and_half_a_marker_does_not(name: str) -> None:
    reader = reader_of(name)
    assert reader.feed("Let me see.").content == "Let me see."
    marker = ONE[name][:5]
    assert reader.feed(" 1 < 2 " + marker).content == " 1 < 2"
    rest = read(reader, [ONE[name][5:]])
    assert rest[0] == "" and [called for called, _ in rest[2]] == ["weather"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "llama"])
def test_half_a_marker_that_stays_half_is_text(name: str) -> None:
    text = "ends with " + ONE[name][:6]
    assert read(reader_of(name), list(text)) == (text, "", [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": oops}}\n</tool_call> after'),
        ("hermes", "<tool_call>not json</tool_call>"),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "cut off'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>" + '{"a":' * 5000 + "1" + "}" * 5000),
        ("qwen_coder", "<tool_call><function=weather>stray<parameter=city>x</parameter></function></tool_call>"),
        ("glm", "<tool_call>two words</tool_call>"),
        ("llama", '{"name": "unknown", "parameters": {}} and more'),
        ("llama", '{"city": "Paris"}'),
        ("llama", "{oops}"),
        ("llama", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("mistral", "[TOOL_CALLS] [oops]"),
        ("mistral_named", "[TOOL_CALLS]weather[ARGS]{oops}"),
        ("mistral_named", "[TOOL_CALLS] two words {}"),
    ],
)
def test_a_malformed_call_comes_out_as_the_text_it_is(name: str, text: str) -> None:
    assert read(reader_of(name), [text]) == (text, "", [])
    assert read(reader_of(name), [text[at : at + 5] for at in range(0, len(text), 5)]) == (text, "", [])


def test_a_call_after_a_malformed_one_is_still_a_call() -> None:
    broken = "<tool_call>{oops}</tool_call>"
    content, _, calls = read(reader_of("hermes"), [f"{broken}\n{ONE['hermes']}\n"])
    assert content == broken and len(calls) == 1


def test_calls_are_read_generously() -> None:
    """Keys in the other order, arguments as text, line breaks in strings, no closing mark."""
    for text in (
        '<tool_call>{"arguments": {"city": "x"}, "name": "weather"}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"x\\"}"}</tool_call>',
        '<tool_call>{"name": "weather", "parameters": {"city": "x"}}',
    ):
        assert [(n, json.loads(a)) for n, a in read(reader_of("hermes"), list(text))[2]] == [("weather", {"city": "x"})]
    text = '<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>'
    [(_, arguments)] = read(reader_of("hermes"), [text])[2]
    assert json.loads(arguments) == {"city": "a\nb"}


FRAGMENTS = st.one_of(
    st.sampled_from([*ONE.values(), *TWO.values()]),
    st.sampled_from("<tool_call> </tool_call> [TOOL_CALLS] [ARGS] <|python_tag|> <think> </think>".split()),
    st.sampled_from('{ } [ ] , " \\ < </ <tool_ ; <function=weather> </function> weather }} \n \n\n'.split(" ")),
    st.sampled_from(['{"name": "weather"', '"arguments": {', " "]),
    st.text(max_size=6),
)
ANSWERS = st.lists(FRAGMENTS, max_size=7).map("".join)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=200, deadline=None)
@given(text=ANSWERS, places=PLACES)
@example(text="[TOOL_CALLS] ", places=[])
def test_how_a_stream_is_cut_makes_no_difference(name: str, text: str, places: list[int]) -> None:
    whole = read(reader_of(name), [text])
    assert read(reader_of(name), cut(text, places)) == whole
    assert read(reader_of(name), list(text)) == whole
    for _, arguments in whole[2]:
        assert isinstance(json.loads(arguments), dict)
    if not whole[2]:
        assert whole[0] == text, "nothing that is no call is lost"


@pytest.mark.parametrize("inside", [False, True])
@settings(max_examples=200, deadline=None)
@given(text=ANSWERS, places=PLACES)
@example(text="<think>\n\na\n\nb\n</think>\n\nc\n\nd", places=[1, 9, 12])
def test_how_thoughts_are_cut_makes_no_difference(inside: bool, text: str, places: list[int]) -> None:
    def reader() -> ReasoningReader:
        return ReasoningReader(KNOWN_MARKS[0], inside=inside)

    whole = read(reader(), [text])
    assert read(reader(), cut(text, places)) == whole
    assert read(reader(), list(text)) == whole


@pytest.mark.parametrize(
    ("text", "inside", "content", "reasoning"),
    [
        ("<think>\nwhy\n\nnot\n</think>\n\nso", False, "so", "why\n\nnot"),
        ("why\n</think>\n\nso\n\n", True, "so\n\n", "why"),
        ("\n<think></think>so", False, "so", ""),
        ("so <think>quoted</think>", False, "so <think>quoted</think>", ""),
        ("never ends\n", True, "", "never ends"),
        ("a <b> </thin", True, "", "a <b> </thin"),
        ("<thin", False, "<thin", ""),
        ("a</think>b</think>c", True, "b</think>c", "a"),
        ("", False, "", ""),
    ],
)
def test_thoughts_are_split_from_the_answer(text: str, inside: bool, content: str, reasoning: str) -> None:
    assert read(ReasoningReader(KNOWN_MARKS[0], inside=inside), list(text)) == (content, reasoning, [])


NAMES = st.sampled_from(["city", "days", "units"])
VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), st.booleans(), st.none(), st.text('ab"\\ {}[]<>/\n中', max_size=6)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "mistral_named"])
@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=1, max_size=3))
def test_what_the_template_writes_is_read_back(name: str, calls: list[dict[str, Any]]) -> None:
    if name == "llama":
        calls = calls[:1]  # its template separates no calls
    tokenizer = TOKENIZERS.setdefault(name, tiny.tokenizer_with(templates.TOOLS[name]))
    renderer = ChatRenderer(tokenizer, frozenset([tokenizer.eos_token_id]))
    said: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"call{n:05}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            for n, arguments in enumerate(calls)
        ],
    }
    question: list[Message] = [{"role": "user", "content": "?"}]
    head = renderer.prompt_text(question)
    text = renderer.whole_text([*question, said]).removeprefix(head).removesuffix("<|im_end|>\n")
    content, _, found = read(reader_of(name), [text])
    assert content == ""
    assert [(called, json.loads(arguments)) for called, arguments in found] == [("weather", each) for each in calls]


TOKENIZERS: dict[str, Any] = {}
