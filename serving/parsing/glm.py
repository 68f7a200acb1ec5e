"""GLM 4.5 and later: <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>…</tool_call>, on lines."""

import re
from collections.abc import Sequence

from serving.parsing.calls import Call, CallFormat, MarkedReader, Spell
from serving.parsing.marked_rules import marked_rules, offered_rules
from serving.parsing.tagged import CLOSING, OPENING, Layout, TaggedCall, each_rule
from serving.parsing.tools import Function

LAYOUT = Layout(
    call=re.compile(r"\s*([A-Za-z0-9_.\-]{1,128})\s*((?:<arg_key>.*)?)", re.DOTALL),
    element=re.compile(r"<arg_key>([^<\n]+)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
    head="{}\n",
    element_head="<arg_key>{}</arg_key>\n<arg_value>",
    element_end="</arg_value>\n",
    end="",
)


class GLMReader(MarkedReader):
    opening = OPENING

    def begin(self) -> Call:
        return TaggedCall(LAYOUT, self.functions)


class GLM(CallFormat):
    markers = (OPENING, CLOSING, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    reader = GLMReader

    def rules(self, functions: Sequence[Function], spell: Spell, *, several: bool) -> str:
        body = f"function {spell(CLOSING)}"
        return marked_rules(OPENING, body, each_rule(functions, LAYOUT), spell, several=several)

    def offered(self, spell: Spell) -> str:
        return offered_rules(OPENING, spell)

    def parts(self, functions: Sequence[Function]) -> list[tuple[str, Function]]:
        return []  # the rules hold all of it
