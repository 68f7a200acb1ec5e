"""Hermes, Qwen 2.5 and 3: <tool_call>{"name": …, "arguments": {…}}</tool_call>, one pair of marks a call."""

from collections.abc import Sequence

from serving.parsing.calls import CallFormat, CallReader, MarkedReader, Spell
from serving.parsing.json_call import JsonCall, json_rules
from serving.parsing.marked_rules import marked_rules, offered_rules
from serving.parsing.tools import Function

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class Hermes(CallFormat):
    markers = (OPENING, CLOSING)

    def reader(self, functions: Sequence[Function], *, live: bool) -> CallReader:
        return MarkedReader(functions, OPENING, lambda: JsonCall(len(OPENING), closing=CLOSING), live=live)

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        body = f'"\\n" function "\\n" {spell(CLOSING)}'
        each = [json_rules(number, function.name, "arguments") for number, function in enumerate(functions)]
        return marked_rules(OPENING, body, each, spell, several=several)

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)
