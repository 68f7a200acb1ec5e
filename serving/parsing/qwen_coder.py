"""Qwen3-Coder: <tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>, on lines."""

import re
from collections.abc import Sequence

from serving.parsing.calls import Call, CallFormat, MarkedReader, Spell
from serving.parsing.marked_rules import marked_rules, offered_rules
from serving.parsing.tagged import CLOSING, OPENING, Layout, TaggedCall, each_rule
from serving.parsing.tools import Function

LAYOUT = Layout(
    call=re.compile(r"\s*<function=([A-Za-z0-9_.\-]{1,128})>(.*)</function>\s*", re.DOTALL),
    element=re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL),
    head="\n<function={}>\n",
    element_head="<parameter={}>\n",
    element_end="\n</parameter>\n",
    end="</function>\n",
)


class QwenCoderReader(MarkedReader):
    opening = OPENING

    def begin(self) -> Call:
        return TaggedCall(LAYOUT, self.functions)


class QwenCoder(CallFormat):
    markers = (OPENING, CLOSING)
    reader = QwenCoderReader

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        body = f"function {spell(CLOSING)}"
        return marked_rules(OPENING, body, each_rule(functions, LAYOUT), spell, several=several)

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)

    def parts(self, functions: Sequence[Function]) -> list[tuple[str, Function]]:
        return []  # the rules hold all of it
