"""Grammars: answers that must be JSON of a schema, match a regular expression, be one of some choices, or are put
together from such parts.

llguidance does the parsing, behind this file alone. A grammar is compiled once; each answer then has a Matcher,
which knows the tokens that may come next. What is done with that is the sampler's and the engine's business."""

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from adapters.errors import Invalid
from serving.engine.closed_schema import closed

if TYPE_CHECKING:
    # Imported at the first grammar: an engine that is asked for none runs without it.
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "rules"]
KEPT = 64  # compiled grammars

# Every property that may be left out is an alternative the parser keeps open, about four items each; its own limit is
# too low for some schemas that clients derive, and passed in the middle of an answer. Two thousand of them already cost
# a sixth of a second when their object begins.
MAX_OPTIONAL = 2000
_ROW_ITEMS = 5 * MAX_OPTIONAL

# The parser would pick the tokens of text that can be no other itself, as the tokenizer spells it: where that text
# contains `<|im_end|>`, the special token, which is no text and breaks the answer.
_OPTIONS = '%llguidance {"no_forcing": true}\n'

# Between two JSON tokens: all on one line. Were there no end to it, a weak model would say nothing but spaces until its
# length is reached; with line breaks it spends most of its length on indentation.
_WHITESPACE = r" ?"


@dataclass(frozen=True)
class Grammar:
    """`text` is the schema as JSON, the regular expression, or the choices as a JSON list; "" for json_object. Rules
    are in llguidance's dialect of Lark, begin with `start`, and may call the grammar of each part as `@name`."""

    kind: GrammarKind
    text: str = ""
    parts: tuple[tuple[str, "Grammar"], ...] = ()
    param: str = field(default="", compare=False)  # the field it was sent in, for errors

    @property
    def field_name(self) -> str:
        return self.param or self.kind


class Matcher:
    """How far one answer is in its grammar. Belongs to the sequence and outlives its keys and values."""

    def __init__(self, state: "LLMatcher"):
        self.state = state

    def take(self, token_id: int) -> None:
        self.state.consume_token(token_id)

    @property
    def stopped(self) -> bool:
        """The answer is complete: nothing but the end of turn could follow."""
        return self.state.is_stopped()

    @property
    def error(self) -> str | None:
        """Why the parser gave up (a limit of its own, mostly); after that the answer cannot be continued."""
        return _reason(self.state.get_error()) if self.state.is_error() else None


class GrammarCompiler:
    """Grammar → Matcher, for one tokenizer and logits `vocab_size` wide. Any thread may call."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_token_ids: frozenset[int]):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_token_ids = sorted(stop_token_ids)
        self._adopted: LLTokenizer | None = None
        self._adopting = threading.Lock()
        # Held for a look only: the engine's thread must not wait for somebody else's schema to compile.
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A new matcher at the grammar's beginning. Compiles a grammar not seen lately, which may take a second.

        Raises Invalid with llguidance's reason for a grammar, or a tokenizer, that it cannot take."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
        if compiled is None:
            compiled = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = compiled
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Matcher(compiled.deep_copy())

    def spelled(self, marker: str) -> str:
        """A text as an element of a rule: the token that is spelled so where the parser takes that for a special one,
        which no text contains. That is its own judgement; `<think>` is one even where the tokenizer says it is not."""
        added = [token for token, each in self._tokenizer.added_tokens_decoder.items() if str(each) == marker]
        if added and self._adopt("").is_special_token(added[0]):
            return f"<[{added[0]}]>"
        return json.dumps(marker)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        tokenizer = self._adopt(grammar.field_name)
        reason, compiled = self._try(tokenizer, grammar)
        if reason is None:
            return compiled
        for _, part in grammar.parts:  # whose fault is it?
            culprit, _ = self._try(tokenizer, part)
            if culprit is not None:
                raise _refused(part, culprit)
        raise _refused(grammar, reason)

    def _try(self, tokenizer: "LLTokenizer", grammar: Grammar) -> tuple[str | None, "LLMatcher"]:
        """(why it cannot be followed, or None; the matcher)."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_items_in_row=_ROW_ITEMS)
        compiled = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=limits)
        compiled.compute_bitmask()  # most of the work, and of the limits, come with the first mask
        return (_reason(compiled.get_error()) if compiled.is_error() else None), compiled

    def _adopt(self, param: str) -> "LLTokenizer":
        """The tokenizer as llguidance sees it; made at the first grammar, in about a second for a large one."""
        with self._adopting:
            if self._adopted is None:
                from llguidance.hf import from_tokenizer

                try:
                    self._adopted = from_tokenizer(
                        self._tokenizer, n_vocab=self._vocab_size, eos_token=self._stop_token_ids
                    )
                except ValueError as error:
                    raise Invalid(
                        f"this model's tokenizer cannot be used for structured output ({_reason(str(error))}); "
                        "ask in the prompt instead",
                        param=param or None,
                        code="unsupported_parameter",
                    ) from error
            return self._adopted


def allowed_tokens(matchers: Sequence[Matcher], vocab_size: int, device: torch.device) -> Tensor:
    """(matchers, vocabulary), True where the token may come next. Never a row of False alone: an answer that is
    complete, or whose parser gave up, may end its turn."""
    words = -(-vocab_size // 32)
    bits = torch.empty(len(matchers), words, dtype=torch.int32)
    todo = [(matcher.state, row) for row, matcher in enumerate(matchers)]
    # Without the GIL, and on several cores when there are several.
    _executor().unsafe_compute_mask_ptr(todo, bits.data_ptr(), words * 4, len(matchers))
    single = bits.to(device)[:, :, None] >> torch.arange(32, dtype=torch.int32, device=device)
    return (single & 1).bool().flatten(1)[:, :vocab_size]


@cache
def _executor() -> "LLExecutor":
    from llguidance import LLExecutor

    return LLExecutor(num_threads=max(1, min(8, (os.cpu_count() or 2) // 2)))


def _source(grammar: Grammar) -> str:
    """In llguidance's own language. Invalid when the text is not even JSON where it must be."""
    if grammar.kind == "rules":
        parts = [_named(name, part) for name, part in grammar.parts]
        return json.dumps({"grammars": [{"lark_grammar": _OPTIONS + grammar.text}, *parts]})
    start = {"lark_grammar": f"{_OPTIONS}start: @whole"}
    return json.dumps({"grammars": [start, _named("whole", grammar)]})


def _named(name: str, grammar: Grammar) -> dict[str, Any]:
    """A grammar as one that others can call."""
    match grammar.kind:
        case "regex":
            if (len(grammar.text) - len(grammar.text.rstrip("\\"))) % 2:
                raise _refused(grammar, "it ends in a single backslash, which escapes nothing; write two")
            from llguidance import LLMatcher

            [converted] = json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"]
            return {"name": name, "lark_grammar": converted["lark_grammar"]}
        case "choice":
            quoted = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(grammar.text)]
            # One terminal, so that thousands of choices are one automaton and not as many rules to keep open.
            return {"name": name, "lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(quoted)}
        case "json_object":
            schema: Any = {"type": "object"}
        case "json_schema":
            schema = _schema(grammar)
        case "rules":
            raise AssertionError("rules are not parts of others")
    if isinstance(schema, dict):
        schema = schema | {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return {"name": name, "json_schema": schema}


def _schema(grammar: Grammar) -> Any:
    try:
        schema = json.loads(closed(grammar.text))
        optional = sum(map(_optional, _objects(schema)))
    except ValueError as error:
        raise _refused(grammar, f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise _refused(grammar, "recursion is too deep; nest it less") from error
    if optional > MAX_OPTIONAL:
        raise _refused(
            grammar, f"it has {optional} properties that may be left out, at most {MAX_OPTIONAL} can be; require some"
        )
    return schema


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema that has properties, the outermost first."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)


def _optional(schema: dict[str, Any]) -> int:
    required = schema.get("required")
    return len(schema["properties"]) - (len(required) if isinstance(required, list) else 0)


def _refused(grammar: Grammar, reason: str) -> Invalid:
    return Invalid(f"this {grammar.field_name} cannot be followed: {reason}", param=grammar.field_name)


def _reason(message: str) -> str:
    """The sentence that matters of llguidance's several lines."""
    explained = re.findall(r"^error: (.+)$", message, flags=re.MULTILINE)
    return str(explained[-1]) if explained else message.strip().splitlines()[0].rpartition("(in regex): ")[2]
