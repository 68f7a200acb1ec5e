"""POST /v1/completions over real HTTP, with the real openai SDK; structured output on both endpoints."""

import enum
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from peft import PeftModel
from pydantic import BaseModel, Field
from transformers import AutoTokenizer, Qwen3ForCausalLM

from tests.serving.running import QUESTION, RunningServer, running_server, settings_for

PROMPT = "从前有一只𠮷猫, who said: <|im_start|>user\nhello"
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    with running_server(settings_for(tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"])) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> object:
    return AutoTokenizer.from_pretrained(tiny_base)


def continued(base: Path, ids: list[int], adapter: Path | None = None) -> tuple[list[int], torch.Tensor]:
    """Greedy continuation by transformers, and log-probabilities (position, vocabulary) of all of it."""
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        out = model.eval().generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=GREEDY["max_tokens"],
            do_sample=False,
        )
        logprobs = model(out).logits[0].log_softmax(-1)
    return out[0].tolist(), logprobs


@pytest.mark.parametrize("model", ["tiny", "r8"])
def test_text_is_continued_as_it_stands_streamed_or_not(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path], tokenizer: object, model: str
) -> None:
    ids = tokenizer.encode(PROMPT)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in ids
    whole, _ = continued(tiny_base, ids, tiny_adapters["r8"] if model == "r8" else None)
    expected = tokenizer.decode(whole[len(ids) :], skip_special_tokens=True).rstrip("\ufffd")
    for prompt in (PROMPT, ids):
        for echo in (False, True):
            asked = GREEDY | {"model": model, "prompt": prompt, "echo": echo}
            raw = server.client().completions.with_raw_response.create(**asked)
            assert raw.headers["x-bianlian-adapter"] == ("r8@1" if model == "r8" else "tiny")
            reply = raw.parse()
            assert reply.object == "text_completion"
            assert reply.choices[0].text == (PROMPT if echo else "") + expected
            assert reply.usage.prompt_tokens == len(ids)
            assert reply.usage.completion_tokens == len(whole) - len(ids)
            chunks = list(
                server.client().completions.create(**asked, stream=True, stream_options={"include_usage": True})
            )
            assert "".join(c.text for chunk in chunks for c in chunk.choices) == reply.choices[0].text
            assert chunks[-1].usage == reply.usage or chunks[-1].usage.prompt_tokens == len(ids)
            assert chunks[-2].choices[0].finish_reason == reply.choices[0].finish_reason


def test_several_prompts_and_choices_come_in_order_each_as_if_alone(server: RunningServer) -> None:
    client = server.client()
    sampled = {"model": "tiny", "max_tokens": 8, "seed": 5, "temperature": 1.0}
    prompts = ["one", "two 二", "three"]
    together = client.completions.create(prompt=prompts, n=2, best_of=2, **sampled)
    assert [choice.index for choice in together.choices] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, n=2, **sampled)
        pair = together.choices[2 * number : 2 * number + 2]
        assert [choice.text for choice in alone.choices] == [choice.text for choice in pair]
    by_ids = client.completions.create(prompt=[[5, 6], [7]], **sampled)
    assert len(by_ids.choices) == 2 and by_ids.usage.prompt_tokens == 3


def assert_scores(
    logged: object, ids: list[int], logprobs: torch.Tensor, tokenizer: object, text: str, top: int
) -> None:
    assert len(logged.tokens) == len(ids)
    assert logged.token_logprobs[0] is None and logged.top_logprobs[0] is None
    expected = [logprobs[at, token].item() for at, token in enumerate(ids[1:])]
    assert logged.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    for at, likely in enumerate(logged.top_logprobs[1:]):
        assert max(likely.values()) == pytest.approx(logprobs[at].max().item(), abs=1e-4)
        assert top <= len(likely) <= top + 1 and logged.tokens[at + 1] in likely
    for token, start in zip(logged.tokens, logged.text_offset, strict=True):
        assert not text.isascii() or text[start:].startswith(token)
    whole_tokens = [entry for entry in zip(logged.tokens, logged.text_offset, strict=True) if entry[0] in text]
    assert all(text[start:].startswith(token) for token, start in whole_tokens)


def test_echo_with_logprobs_and_no_tokens_scores_the_prompt(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path], tokenizer: object
) -> None:
    """What lm-evaluation-harness asks of a completions endpoint."""
    for model, adapter in (("tiny", None), ("r8", tiny_adapters["r8"])):
        scored = {"model": model, "max_tokens": 0, "echo": True, "logprobs": 3}
        texts = ["The capital of France is Paris.", PROMPT]
        reply = server.client().completions.create(prompt=texts, **scored)
        for text, choice in zip(texts, reply.choices, strict=True):
            ids = tokenizer.encode(text)
            _, logprobs = continued(tiny_base, ids, adapter)
            assert (choice.text, choice.finish_reason) == (text, "length")
            assert_scores(choice.logprobs, ids, logprobs, tokenizer, text, 3)
        assert reply.usage.completion_tokens == 0
        again = server.client().completions.create(prompt=texts[1], **scored)
        assert again.usage.prompt_tokens_details.cached_tokens == 0
        assert again.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
            reply.choices[1].logprobs.token_logprobs[1:], abs=1e-4
        )
        [streamed] = list(server.client().completions.create(prompt=PROMPT, stream=True, **scored))
        assert streamed.choices[0].text == PROMPT
        assert streamed.choices[0].logprobs.tokens == reply.choices[1].logprobs.tokens


def test_logprobs_of_prompt_and_answer_together(server: RunningServer, tiny_base: Path, tokenizer: object) -> None:
    ids = tokenizer.encode("hello there")
    whole, logprobs = continued(tiny_base, ids)
    asked = GREEDY | {"prompt": ids, "logprobs": 0}
    both = server.client().completions.create(**asked, echo=True).choices[0]
    assert both.logprobs.token_logprobs[1:] == pytest.approx(
        [logprobs[at, token].item() for at, token in enumerate(whole[1:])], abs=1e-4
    )
    assert both.logprobs.text_offset == sorted(both.logprobs.text_offset)
    assert both.logprobs.text_offset[len(ids)] == len("hello there")
    answer = server.client().completions.create(**asked).choices[0]
    assert answer.logprobs.token_logprobs == both.logprobs.token_logprobs[len(ids) :]
    assert answer.logprobs.text_offset[0] == 0
    parts = [
        chunk.choices[0].logprobs
        for chunk in server.client().completions.create(**asked, echo=True, stream=True)
        if chunk.choices[0].logprobs
    ]
    assert [token for part in parts for token in part.tokens] == both.logprobs.tokens
    assert [offset for part in parts for offset in part.text_offset] == both.logprobs.text_offset


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "best_of": 3}, None, "best_of is 3"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "20"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", 1]}, "prompt", "list of token ids"),
        ({"prompt": [1, -1]}, "prompt", "list of token ids"),
        ({"prompt": [[1], "a"]}, "prompt", "list of token ids"),
        ({"prompt": [1, 9_000_000]}, "prompt", "vocabulary"),
        ({"prompt": [5] * 513}, "prompt", "512"),
        ({"prompt": "长" * 30_000}, "prompt", "512"),
        ({"prompt": ["a"] * 100, "n": 2}, None, "128"),
        ({"prompt": "a", "messages": []}, "messages", "not supported"),
        ({"prompt": "a", "stream_options": {}}, None, "stream"),
        ({"prompt": "a", "guided_regex": "a", "guided_choice": ["b"]}, None, "guided_regex and guided_choice"),
        ({"prompt": "a", "response_format": {"type": "json_object"}, "guided_json": {}}, None, "contradict"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"prompt": "a", "structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"prompt": "a", "structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "not supported"),
        ({"prompt": "a", "guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
        ({"prompt": "a", "guided_json": '{"not": {}}'}, "guided_json", '"not"'),
        ({"prompt": "a", "guided_json": [1]}, "guided_json", "takes a JSON schema"),
        ({"prompt": "a", "guided_choice": []}, "guided_choice", "1"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_requests_name_the_field_and_the_limit(
    server: RunningServer, body: dict[str, object], param: str | None, words: str
) -> None:
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny"} | body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert words in error["message"]


def test_a_prompt_as_long_as_the_model_can_be_scored_but_not_continued(server: RunningServer) -> None:
    body = {"model": "tiny", "prompt": [5] * 512, "echo": True, "logprobs": 0}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 400
    scored = httpx.post(f"{server.url}/v1/completions", json=body | {"max_tokens": 0}).json()
    assert len(scored["choices"][0]["logprobs"]["tokens"]) == 512


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "蓝"


class Face(BaseModel):
    colour: Colour
    angry: bool
    lines: list[int] = Field(max_length=3)


def test_the_sdk_parses_answers_into_pydantic_models(server: RunningServer) -> None:
    for model in ("tiny", "r8"):
        reply = server.client().chat.completions.parse(
            model=model, messages=QUESTION, response_format=Face, seed=1, max_tokens=300
        )
        assert isinstance(reply.choices[0].message.parsed, Face)
        assert reply.choices[0].finish_reason == "stop"
    with server.client().chat.completions.stream(
        model="tiny", messages=QUESTION, response_format=Face, seed=2, max_tokens=300
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Face)
    with pytest.raises(openai.LengthFinishReasonError):
        server.client().chat.completions.parse(model="tiny", messages=QUESTION, response_format=Face, max_tokens=2)


@pytest.mark.parametrize(
    "extra",
    [
        {"structured_outputs": {"choice": ["红", "blue"]}},
        {"guided_choice": ["红", "blue"]},
        {"structured_outputs": {"regex": "红|blue"}},
        {"guided_regex": "红|blue"},
        {"structured_outputs": {"json": {"enum": ["红", "blue"]}}},
        {"guided_json": {"enum": ["红", "blue"]}},
        {"guided_json": '{"enum": ["红", "blue"]}'},
        {"response_format": {"type": "text"}, "guided_choice": ["红", "blue"]},
    ],
    ids=str,
)
def test_vllms_fields_for_structured_output(server: RunningServer, extra: dict[str, object]) -> None:
    chat = server.client().chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20, extra_body=extra)
    text = server.client().completions.create(model="tiny", prompt="colour:", max_tokens=20, extra_body=extra)
    for answer in (chat.choices[0].message.content, text.choices[0].text):
        assert answer.strip('"') in ("红", "blue")
        assert '"' not in answer or json.loads(answer)


def test_a_json_object_is_one(server: RunningServer) -> None:
    # A random model does not care to end; what it has said so far must be the beginning of an object.
    reply = server.client().chat.completions.create(
        model="tiny", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=40, seed=3
    )
    content = reply.choices[0].message.content
    assert content.startswith("{")
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)
