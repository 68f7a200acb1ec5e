"""One answer: what it has to follow, and how its text is read."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from adapters.errors import Invalid
from adapters.reasoning import ReasoningMarks
from serving.engine.grammar import Grammar
from serving.parsing.answer_format import AnswerFormat
from serving.parsing.calls import CallFormat, CallReader, Spell
from serving.parsing.pieces import Pieces, Reader
from serving.parsing.reasoning import ReasoningReader
from serving.parsing.tools import Tools

_AFTER_THOUGHTS = "after_thoughts: /\\n{0,2}/\n"


@dataclass(frozen=True)
class AnswerPlan:
    """`marks` where the answer may begin with thoughts, `inside` where the prompt has begun them. `grammar` is for all
    of the answer's text, thoughts included."""

    marks: ReasoningMarks | None = None
    inside: bool = False
    calls: CallFormat | None = None
    tools: Tools | None = None
    grammar: Grammar | None = None

    @property
    def plain(self) -> bool:
        """The text is the content."""
        return self.marks is None and self.calls is None

    def reader(self) -> "AnswerReader":
        return AnswerReader(self)


class AnswerReader(Reader):
    """Text as it arrives → content, thoughts and calls."""

    def __init__(self, plan: AnswerPlan):
        self.thoughts = ReasoningReader(plan.marks, inside=plan.inside) if plan.marks else None
        self._calls: CallReader | None = None
        if plan.calls and plan.tools:
            live = _enforced(plan.tools)
            self._calls = plan.calls.reader(plan.tools.functions, live=live)

    @property
    def cut(self) -> bool:
        """Whether the answer ended inside a call that has been passed on."""
        return self._calls is not None and self._calls.cut

    def _read(self, text: str, *, final: bool) -> Pieces:
        pieces = Pieces(text)
        if self.thoughts:
            pieces = self.thoughts.finish() if final else self.thoughts.feed(text)
        if self._calls is None:
            return pieces
        found = self._calls.feed(pieces.content)
        last = self._calls.finish() if final else Pieces()
        return Pieces(found.content + last.content, pieces.reasoning, (*found.calls, *last.calls))


def plan_answer(
    form: AnswerFormat,
    prompt: str,
    *,
    thinks: bool,
    tools: Tools | None,
    content: Grammar | None,
    spell: Spell,
) -> AnswerPlan:
    """`content` is what the content has to follow, if anything; `tools` must suit the format. Invalid for tools whose
    calls cannot be enforced."""
    tools = None if tools is None or tools.choice == "none" else tools
    marks = form.reasoning if thinks else None
    plan = AnswerPlan(
        marks=marks,
        inside=marks is not None and marks.inside(prompt),
        calls=form.calls if tools else None,
        tools=tools,
    )
    return replace(plan, grammar=_grammar(plan, content, spell))


def hidden_tokens(form: AnswerFormat, tokenizer: Any) -> frozenset[int] | None:
    """Special tokens that say nothing about the answer, None when that is all of them: the text of those that mark
    thoughts and calls has to be read."""
    special = {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    hidden = frozenset(token for token, text in special.items() if text not in form.markers)
    return hidden if len(hidden) < len(special) else None


def _enforced(tools: Tools) -> bool:
    """Whether no call can be malformed."""
    return tools.choice == "required" or tools.strict


def _grammar(plan: AnswerPlan, content: Grammar | None, spell: Spell) -> Grammar | None:
    rules, parts = "", []
    if plan.calls and plan.tools and (_enforced(plan.tools) or content):
        functions = plan.tools.callable
        rules = plan.calls.rules(functions, spell, several=plan.tools.several)
        parts = [(name, function.grammar) for name, function in plan.calls.parts(functions)]
        if plan.tools.choice == "required":
            body = "calls"
        elif content:
            body = "(calls | @content)"
        else:
            body, rules = "offered", rules + plan.calls.offered(spell)
    elif content:
        body = "@content"
    else:
        return None
    if content and "@content" in body:
        parts.append(("content", content))
    if plan.marks is None:
        if body == "@content":
            return content
        return Grammar("rules", f"start: {body}\n{rules}", tuple(parts), param="tools")
    start = _thoughts_first(body, plan.marks, spell, inside=plan.inside)
    return Grammar("rules", start + rules, tuple(parts), param="tools" if rules else content.param if content else "")


def _thoughts_first(body: str, marks: ReasoningMarks, spell: Spell, *, inside: bool) -> str:
    """Thoughts are any text up to their closing mark; where the prompt has not begun them they may be left out."""
    closing = _pattern(marks.closing)
    if spell(marks.closing) != json.dumps(marks.closing):
        opening = "" if inside else spell(marks.opening)
        thoughts = (
            f"thoughts: {opening} THOUGHTS {spell(marks.closing)}\nTHOUGHTS: /(?s:.*)/ & ~/(?s:.*){closing}(?s:.*)/\n"
        )
    else:
        opening = "" if inside else _pattern(marks.opening)
        thoughts = f"thoughts[lazy]: /{opening}(?s:.*){closing}/\n"
    first = "thoughts after_thoughts" if inside else "(thoughts after_thoughts)?"
    return f"start: {first} {body}\n{thoughts}{_AFTER_THOUGHTS}"


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", "\\/")


def check_tools(form: AnswerFormat, tools: Tools) -> None:
    """Invalid when the model's template has no tools, or what is offered contradicts itself."""
    if form.calls is None:
        raise Invalid(
            f"tools is not supported by this model: {form.no_tools}; describe them in the prompt instead, or serve a "
            "base whose template has them",
            param="tools",
            code="unsupported_parameter",
        )
    if not tools.functions:
        raise Invalid("tools is empty; leave it out, or offer at least one function", param="tools")
    names = [function.name for function in tools.functions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise Invalid(f"tools has two functions called '{twice}'; names must differ", param="tools")
    if tools.only is not None and tools.only not in names:
        raise Invalid(
            f"tool_choice names '{tools.only}', which tools does not have; it has {', '.join(names)}",
            param="tool_choice",
        )


def resolve_thinking(form: AnswerFormat, asked: bool | None, default: bool) -> bool:
    """Whether the model thinks. Invalid when the caller asks for what the template cannot do."""
    if form.reasoning is None:
        if asked:
            raise Invalid(
                "thinking is not supported by this model: its chat template has no place for thoughts",
                param="thinking",
                code="unsupported_parameter",
            )
        return False
    if not form.switchable:
        if asked is False:
            raise Invalid(
                "thinking cannot be turned off: this model's chat template has no switch for it; leave it out",
                param="thinking",
                code="unsupported_parameter",
            )
        return True
    return default if asked is None else asked
