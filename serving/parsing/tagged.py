"""GLM's and Qwen3-Coder's calls, which spell their arguments as elements, one a parameter: text as it stands, all else
as JSON. They are passed on when they are complete: until then it is open what the arguments are as JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import Invalid
from serving.parsing.calls import CallFormat, CallReader, Malformed, MarkedReader, Spell
from serving.parsing.json_call import as_json
from serving.parsing.marked_rules import marked_rules, offered_rules
from serving.parsing.tools import Function

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Layout:
    """How one format writes a call. `call` finds name and elements in what stands between the marks, `element` a
    parameter and its value. Heads and ends are what a grammar writes; `{}` stands for the name. `marks` are what may be
    special tokens between the outer ones."""

    call: re.Pattern[str]
    element: re.Pattern[str]
    head: str
    element_head: str
    element_end: str
    end: str
    marks: tuple[str, ...] = ()


# <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>…</tool_call>, on lines: GLM 4.5 and later.
GLM = Layout(
    call=re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})\s*((?:<arg_key>.*)?)", re.DOTALL),
    element=re.compile(r"<arg_key>([^<\n]+)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
    head="{}\n",
    element_head="<arg_key>{}</arg_key>\n<arg_value>",
    element_end="</arg_value>\n",
    end="",
    marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
# <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>, on lines.
QWEN_CODER = Layout(
    call=re.compile(r"\s*<function=([A-Za-z0-9_.\-]{1,128})>(.*)</function>\s*", re.DOTALL),
    element=re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL),
    head="\n<function={}>\n",
    element_head="<parameter={}>\n",
    element_end="\n</parameter>\n",
    end="</function>\n",
)


class Tagged(CallFormat):
    def __init__(self, layout: Layout):
        self.layout = layout
        self.markers = (OPENING, CLOSING, *layout.marks)

    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader:
        offered = {function.name: function for function in functions}
        return MarkedReader(functions, OPENING, lambda: TaggedCall(self.layout, offered), live=live)

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        each = [tagged_rules(number, function, self.layout) for number, function in enumerate(functions)]
        return marked_rules(OPENING, f"function {spell(CLOSING)}", each, spell, several=several)

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)

    def parts(self, functions: Sequence[Function]) -> list[tuple[str, Function]]:
        return []  # the rules hold all of it


class TaggedCall:
    def __init__(self, layout: Layout, functions: dict[str, Function]):
        self.id: str | None = None
        self.name: str | None = None
        self.arguments = ""
        self._layout = layout
        self._functions = functions

    def read(self, text: str, *, final: bool) -> int | None:
        at = text.find(CLOSING, len(OPENING))
        if at < 0:
            if final:
                raise Malformed
            return None
        call = self._layout.call.fullmatch(text, len(OPENING), at)
        if call is None:
            raise Malformed
        arguments: dict[str, Any] = {}
        function = self._functions.get(call[1])
        place = call.start(2)
        for element in self._layout.element.finditer(text, call.start(2), call.end(2)):
            if text[place : element.start()].strip():
                raise Malformed
            arguments[element[1]] = _value(element[2], function, element[1])
            place = element.end()
        if text[place : call.end(2)].strip():
            raise Malformed
        self.arguments = as_json(arguments)
        self.name = call[1]
        return at + len(CLOSING)


def tagged_rules(number: int, function: Function, layout: Layout) -> str:
    """The rule `function<number>`. Parameters come in the schema's order; texts end where their element does."""
    schema = function.schema
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref")):
        raise Invalid(
            f"the parameters of '{function.name}' are not a plain object with properties; this model's calls cannot be "
            "enforced for it, send tool_choice='auto' without strict",
            param=function.param,
        )
    required = schema.get("required", [])
    rules, body = [], []
    for place, (name, value) in enumerate(properties.items()):
        rule = f"element{number}_{place}"
        head = json.dumps(layout.element_head.format(name), ensure_ascii=False)
        end = json.dumps(layout.element_end, ensure_ascii=False)
        if _is_text(value):
            pattern = re.escape(layout.element_end).replace("/", "\\/").replace("\n", "n")
            rules.append(f"{rule}: {head} {rule}_text\n{rule}_text[lazy]: /(?s:.*){pattern}/\n")
        elif isinstance(value, dict) and _all_text(value.get("enum")):
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value["enum"])
            rules.append(f"{rule}: {head} ({choices}) {end}\n")
        else:
            shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            spelled = json.dumps({**shared, **value} if isinstance(value, dict) else value)
            rules.append(f"{rule}: {head} %json {spelled} {end}\n")
        body.append(rule if name in required else f"{rule}?")
    body = [json.dumps(layout.head.format(function.name)), *body, *([json.dumps(layout.end)] if layout.end else [])]
    return f"function{number}: {' '.join(body)}\n" + "".join(rules)


def _value(text: str, function: Function | None, parameter: str) -> Any:
    properties = function.schema.get("properties") if function else None
    schema = properties.get(parameter) if isinstance(properties, dict) else None
    if _is_text(schema) or (isinstance(schema, dict) and _all_text(schema.get("enum"))):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(schema: Any) -> bool:
    return (
        isinstance(schema, dict) and schema.get("type") == "string" and "enum" not in schema and "const" not in schema
    )


def _all_text(choices: Any) -> bool:
    return isinstance(choices, list) and bool(choices) and all(isinstance(choice, str) for choice in choices)
