"""Chat templates as their makers publish them (TRL ships copies): each learned answer stands behind the prompt that
is served, is said whole, and ends with a token that stops generation."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from adapters.renderer import ChatRenderer, Message
from tests import tiny

# Tokens that stop generation, from the models' generation_config.json.
STOPS = {
    "qwen2_5": ["<|im_end|>"],
    "qwen3": ["<|im_end|>"],
    "qwen3_5_think": ["<|im_end|>"],
    "llama3_1": ["<|eot_id|>"],
    "deepseek_r1_distill": ["<｜end▁of▁sentence｜>"],
    "glm4moe": ["<|user|>", "<|observation|>"],
    "phi3": ["<|end|>"],
}
LOOK = {"name": "look", "description": "查天气。", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": LOOK}]
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"city": "北京"}}}
PLAIN: list[Message] = [
    {"role": "system", "content": "你是孙悟空。"},
    {"role": "user", "content": "你是谁？"},
    {"role": "assistant", "content": "俺老孙！"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Still me."},
]
THINKING: list[Message] = [
    {**message, "reasoning_content": "Who asks?"} if message["role"] == "assistant" else message for message in PLAIN
]
CALLING: list[Message] = [
    *PLAIN[:4],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "It rains."},
]


@pytest.fixture(scope="module", params=list(STOPS))
def renderer(request: pytest.FixtureRequest) -> ChatRenderer:
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "chat_templates" / f"{request.param}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {path.name}")
    stops = STOPS[request.param]
    tokenizer = tiny.tokenizer_with(
        path.read_text(encoding="utf-8"), special_tokens=[token for token in stops if token != "<|im_end|>"]
    )
    tokenizer.bos_token = "<|endoftext|>"
    return ChatRenderer(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(stops)))


@pytest.mark.parametrize("talk", [PLAIN, THINKING, CALLING], ids=["plain", "thinking", "calling"])
def test_each_answer_follows_its_served_prompt_and_ends(renderer: ChatRenderer, talk: list[Message]) -> None:
    tools = TOOLS if talk is CALLING else []
    if tools and not renderer.has_tools:
        pytest.skip("the template has no tools")
    if talk is THINKING and renderer.reasoning_marks is None:
        pytest.skip("the template has no thoughts")
    turns = [index for index, message in enumerate(talk) if message["role"] == "assistant"]
    for row in renderer.examples(talk, tools=tools, thinking=True):
        starts = [at for at in range(1, len(row.ids)) if row.learned[at] and not row.learned[at - 1]]
        for start in starts:
            index = turns.pop(0)
            thinks = "reasoning_content" in talk[index]
            assert row.ids[:start] == renderer.prompt_ids(talk[:index], tools=tools, thinking=thinks)
            end = next((at for at in range(start, len(row.ids)) if not row.learned[at]), len(row.ids))
            assert row.ids[end - 1] in renderer.stop_token_ids
            said = renderer.tokenizer.decode(row.ids[start:end])
            assert talk[index]["content"] in said
            assert ("look" in said) == ("tool_calls" in talk[index])
            assert ("Who asks?" in said) == thinks
    assert not turns
