"""Answers that follow a grammar, whatever the model would rather say: here its weights are random."""

import json
import random
import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from adapters.errors import Invalid
from serving.engine.closed_schema import closed
from serving.engine.engine import Engine
from serving.engine.grammar import Grammar, GrammarCompiler, allowed_tokens
from serving.engine.sequence import FinishReason, SamplingParams, TokenDelta
from tests.serving.test_engine import (
    assert_nothing_held,
    build_engine,
    drain,
    random_prompts,
    request,
    tokens_of,
    version_of,
)


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=6)
    age: int = Field(ge=0, le=150)
    tags: list[Literal["红", "blue"]] = Field(max_length=3)


SCHEMA = Grammar("json_schema", json.dumps(Person.model_json_schema()))
CHOICES = ["yes", "yes!", 'a "quoted" \\ line\nend', "中文", "<|im_end|>"]
CHOICE = Grammar("choice", json.dumps(CHOICES))
DATE = Grammar("regex", r"[0-9]{4}-(0[1-9]|1[0-2])")
SAMPLED = {"temperature": 1.0, "max_tokens": 400, "ignore_eos": False}


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Engine:
    return build_engine(tiny_base)


def answers(engine: Engine, *params: dict[str, object]) -> list[tuple[str, FinishReason | None]]:
    """The same prompt under each of the parameters, in one batch."""
    for number, chosen in enumerate(params):
        engine.add(request(f"{number}", [50, 60, 70], **{**SAMPLED, **chosen}))
    deltas = drain(engine)
    assert_nothing_held(engine)
    return [("".join(d.text for d in deltas[key]), deltas[key][-1].finish_reason) for key in sorted(deltas, key=int)]


def test_every_answer_follows_its_schema(engine: Engine) -> None:
    found = answers(engine, *({"grammar": SCHEMA, "seed": seed, "temperature": seed / 8} for seed in range(12)))
    for text, reason in found:
        Person.model_validate_json(text)
        assert reason == FinishReason.STOP
    assert len({text for text, _ in found}) > 6


class Plain(BaseModel):
    """As Pydantic writes models by default: nothing is said of properties that are not listed."""

    class Part(BaseModel):
        masks: int = Field(ge=0, le=9)

    kind: Literal["a", "b"]
    parts: list[Part] = Field(max_length=2)
    other: Part | None


def test_properties_that_are_not_listed_are_not_written(engine: Engine) -> None:
    plain = Grammar("json_schema", json.dumps(Plain.model_json_schema()))
    for text, reason in answers(engine, *({"grammar": plain, "seed": seed} for seed in range(8))):
        assert reason == "stop"
        said = json.loads(text)
        assert said.keys() == {"kind", "parts", "other"} and all(part.keys() == {"masks"} for part in said["parts"])


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    "schema",
    [
        OPEN | {"additionalProperties": {"type": "string"}},
        OPEN | {"additionalProperties": True},
        OPEN | {"minProperties": 2},
        {"type": "object"},
        {"allOf": [OPEN, {"properties": {"b": {}}}]},
        OPEN | {"anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"const": OPEN},
        {"type": "object", "properties": {}, "patternProperties": {"^x": {}}},
        [1],
        1,
    ],
    ids=str,
)
def test_schemas_that_mean_more_properties_or_combine_lists_stay_open(schema: object) -> None:
    assert json.loads(closed(json.dumps(schema))) == schema


def test_a_property_may_be_named_like_a_keyword() -> None:
    schema = {"properties": {"allOf": OPEN, "properties": {"type": "string"}}}
    inner = OPEN | {"additionalProperties": False}
    assert json.loads(closed(json.dumps(schema))) == {
        "properties": {"allOf": inner, "properties": {"type": "string"}},
        "additionalProperties": False,
    }
    for broken in ("{", "[" * 100_000):
        assert closed(broken) == broken


def test_choices_expressions_and_objects(engine: Engine) -> None:
    choices = answers(engine, *({"grammar": CHOICE, "seed": seed} for seed in range(25)))
    assert {text for text, _ in choices} <= set(CHOICES) and len(set(choices)) > 2
    dates = answers(engine, *({"grammar": DATE, "seed": seed} for seed in range(5)))
    assert all(re.fullmatch(DATE.text, text) and reason == FinishReason.STOP for text, reason in dates)
    [(text, reason)] = answers(engine, {"grammar": Grammar("json_object"), "logit_bias": biased(engine, "}", 100)})
    assert (json.loads(text), reason) == ({}, FinishReason.STOP)


def biased(engine: Engine, text: str, bias: float) -> tuple[tuple[int, float], ...]:
    [token] = engine.base.tokenizer.encode(text, add_special_tokens=False)
    return ((token, bias),)


def test_it_goes_together_with_penalties_bias_truncation_stops_and_lengths(engine: Engine) -> None:
    digits = Grammar("regex", "[0-9]+")
    prefer = biased(engine, "7", 50.0)
    found = answers(
        engine,
        {"grammar": digits, "max_tokens": 6},
        {"grammar": digits, "temperature": 0.0, "logit_bias": prefer, "max_tokens": 4},
        {"grammar": digits, "temperature": 0.0, "logit_bias": prefer, "frequency_penalty": 20.0, "max_tokens": 6},
        {"grammar": digits, "logit_bias": prefer, "stop": ("77",)},
        {"grammar": digits, "min_tokens": 12, "max_tokens": 12, "top_k": 3, "top_p": 0.9, "min_p": 0.01},
        {"grammar": DATE, "min_tokens": 100},
        {"grammar": Grammar("regex", "(ab)*"), "ignore_eos": True, "max_tokens": 50},
    )
    texts = [text for text, _ in found]
    assert texts[0].isdigit()
    assert texts[1] == "7777" and found[1][1] == FinishReason.LENGTH
    assert texts[2].startswith("777") and set(texts[2]) > {"7"}
    assert found[3] == ("", FinishReason.STOP)
    assert texts[4].isdigit() and found[4][1] == FinishReason.LENGTH
    # Complete before its minimum length: there is nothing more that could be said.
    assert re.fullmatch(DATE.text, texts[5]) and found[5][1] == FinishReason.STOP
    # The end of turn is part of the grammar's own course, wanted or not.
    assert re.fullmatch("(ab)*a?", texts[6])


def test_thousands_of_choices_are_no_more_than_one(engine: Engine) -> None:
    many = Grammar("choice", json.dumps([f"c{number}" for number in range(5000)]))
    [(text, reason)] = answers(engine, {"grammar": many})
    assert re.fullmatch("c[0-9]{1,4}", text) and reason == FinishReason.STOP


def test_an_answer_cut_off_by_its_length_says_so(engine: Engine) -> None:
    [(text, reason)] = answers(engine, {"grammar": SCHEMA, "max_tokens": 3})
    assert reason == FinishReason.LENGTH and text


def test_preemption_and_neighbours_change_nothing(tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    """Alone, in a random busy batch, and in one that runs out of blocks: the same tokens."""
    versions = [version_of(name, tiny_adapters[name]) for name in ("r2", "r8")]
    rng = random.Random(3)
    wanted = []
    for number, prompt in enumerate(random_prompts(14, seed=12)):
        params = {
            "temperature": rng.choice([0.0, 0.8, 1.3]),
            "seed": rng.randrange(1000),
            "top_k": rng.choice([0, 10]),
            "top_p": rng.choice([1.0, 0.9]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "frequency_penalty": rng.choice([0.0, 0.5]),
            "grammar": rng.choice([None, SCHEMA, CHOICE, DATE]),
            "max_tokens": 40,
            "ignore_eos": False,
        }
        mix = rng.choice([(), *(((version.digest, 1.0),) for version in versions)])
        wanted.append(request(f"{number}", (prompt * 8)[:120], mix=mix, **params))

    def run(requests: list[object], *, room: int | None = None) -> dict[str, list[int]]:
        engine = build_engine(tiny_base)
        for version in versions:
            engine.bank.warm(version)
        if room:
            hoard = engine.pool.num_free - room
            for _ in range(hoard):
                engine.pool._free.popitem(last=False)
        for entry in requests:
            engine.add(entry)
        return {key: tokens_of(deltas) for key, deltas in drain(engine).items()}

    busy = run(wanted)
    assert busy == run(wanted, room=22)
    for entry in rng.sample(wanted, 5):
        assert run([entry]) == {entry.id: busy[entry.id]}


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", '{"not": {"type": "string"}}'), '"not"'),
        (Grammar("json_schema", '{"type": "strin"}'), "strin"),
        (Grammar("json_schema", '{"$ref": "#/nowhere"}'), "/nowhere"),
        (Grammar("json_schema", "{oops"), "json_schema"),
        (Grammar("json_schema", '{"type": "string", "pattern": "(?=a)b"}'), "look-around"),
        (Grammar("json_schema", '{"items": ' * 5000 + "{}" + "}" * 5000), "recursion"),
        (Grammar("regex", "(?=a)b"), "look-around"),
        (Grammar("regex", "["), "unclosed character class"),
        (Grammar("regex", r"\bfoo"), "lookarounds not supported"),
        (Grammar("regex", "(" * 20_000 + ")" * 20_000), "regex"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_grammar_that_cannot_be_followed_is_refused_with_the_reason(
    engine: Engine, grammar: Grammar, words: str
) -> None:
    with pytest.raises(Invalid) as refused:
        engine.grammars.matcher(grammar)
    assert words in refused.value.message and "\n" not in refused.value.message
    assert refused.value.param == grammar.kind


def test_a_tokenizer_without_bytes_is_refused_with_the_reason() -> None:
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    with pytest.raises(Invalid, match="tokenizer cannot be used for structured output"):
        GrammarCompiler(tokenizer, 3, frozenset([2])).matcher(CHOICE)


def test_masks_are_as_wide_as_the_logits_and_never_allow_what_the_tokenizer_lacks(engine: Engine) -> None:
    tokenizer = engine.base.tokenizer
    width = len(tokenizer) + 77  # padded, as many checkpoints are
    compiler = GrammarCompiler(tokenizer, width, engine.base.stop_token_ids)
    matchers = [compiler.matcher(grammar) for grammar in (DATE, CHOICE, SCHEMA)]
    allowed = allowed_tokens(matchers, width, torch.device("cpu"))
    assert allowed.shape == (3, width) and not allowed[:, len(tokenizer) :].any()
    first = [tokenizer.decode([token]) for token in allowed[0].nonzero()[:, 0].tolist()]
    assert first and all(text.isdigit() for text in first)


def test_compiling_twice_is_compiling_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Grammar] = []
    compile_ = GrammarCompiler._compile
    monkeypatch.setattr(GrammarCompiler, "_compile", lambda self, g: (compiled.append(g), compile_(self, g))[1])
    grammar = Grammar("regex", "once{3}")
    for _ in range(3):
        engine.grammars.matcher(grammar)
    assert compiled == [grammar]


def test_a_parser_that_gives_up_ends_its_answer_with_the_reason_and_no_other(engine: Engine) -> None:
    engine.add(request("broken", [5, 6], grammar=DATE, max_tokens=20))
    engine.add(request("fine", [5, 6], grammar=DATE, max_tokens=20))
    sequences = {key: running.sequence for key, running in engine._requests.items()}
    engine.step()
    matcher = sequences["broken"].matcher
    assert matcher
    matcher.take(engine.base.tokenizer.encode("x")[0])  # as if a limit of the parser had been passed
    last: dict[str, TokenDelta] = {key: deltas[-1] for key, deltas in drain(engine).items()}
    assert last["broken"].finish_reason == FinishReason.ERROR and "grammar" in (last["broken"].error or "")
    assert last["fine"].finish_reason == FinishReason.STOP
    assert_nothing_held(engine)


def test_params_without_grammar_carry_no_matcher(engine: Engine) -> None:
    assert not SamplingParams(temperature=0.0).adjusted and SamplingParams(grammar=DATE).adjusted
