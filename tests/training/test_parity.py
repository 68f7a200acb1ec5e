"""What is trained is what will be asked: the tokens before every learned answer equal, one for one, those that the
server hands to its engine for the same conversation. Through files, rendering, HTTP and the chat service, all real."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import templates, tiny
from tests.serving.running import RunningServer, running_server, settings_for
from training.base_info import read_base
from training.data.dataset import NOT_LEARNED, load_dataset

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "查天气。",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": '{"city": "北京"}'}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "你是孙悟空。\nBe brief."}
PLAIN = [SYSTEM, user("你是谁？"), assistant("俺老孙！"), user("And <|im_end|> now?"), assistant("Still me. 🐵")]
CALLING = [
    SYSTEM,
    user("北京下雨吗？"),
    assistant(None, tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "call00001", "content": '{"sky": "rain"}'},
    assistant("下雨。"),
    user("Thanks"),
    assistant("Any time."),
]
THINKING = [
    user("1+1?"),
    assistant("2", reasoning_content="One and one."),
    user("2+2?"),
    assistant("4", reasoning_content="Two and two."),
    user("Sure?"),
    assistant("Yes."),
]
BOTH = [*CALLING[:4], assistant("下雨。", reasoning_content="The tool says so.")]

TEMPLATES = {"mini": None, "hermes": templates.HERMES, "switched": templates.SWITCHED, "begun": templates.BEGUN}
CASES = [
    ("mini", PLAIN, None),
    ("hermes", PLAIN, None),
    ("hermes", PLAIN, TOOLS),
    ("hermes", CALLING, TOOLS),
    ("switched", PLAIN, None),
    ("switched", CALLING, TOOLS),
    ("switched", THINKING, None),
    ("switched", BOTH, TOOLS),
    ("begun", PLAIN, None),
    ("begun", THINKING, None),
]


@pytest.fixture(scope="module", params=list(TEMPLATES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any, Path]]:
    directory = tmp_path_factory.mktemp(request.param)
    base = tiny.save_base(directory / "base", template=TEMPLATES[request.param])
    with running_server(settings_for(base, directory / "home")) as server:
        yield request.param, server, base


def asked(server: RunningServer, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompt tokens of the request that reaches the engine for `body`."""
    engine = server.services.engine
    seen: list[list[int]] = []
    submit = engine.submit

    def recording(requests: Any, *rest: Any) -> Any:
        seen.extend(list(request.prompt_ids) for request in requests)
        return submit(requests, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "submit", recording)
        server.client().chat.completions.create(model=server.services.chat.base.name, max_tokens=1, **body)
    (prompt,) = seen
    return prompt


def test_every_learned_answer_stands_behind_the_prompt_that_is_served(
    served: tuple[str, RunningServer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, server, base = served
    renderer = read_base(str(base)).renderer
    for template, messages, tools in CASES:
        if template != name:
            continue
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps({"messages": messages, **({"tools": tools} if tools else {})}) + "\n")
        dataset = load_dataset([path], renderer, max_length=1024)
        assert not dataset.report.bad
        learned = [prefix for row in dataset.rows for prefix in prompts_of(row.input_ids, row.labels)]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(learned) == len(turns)
        for index, prompt in zip(turns, learned, strict=True):
            body: dict[str, Any] = {"messages": messages[:index], **({"tools": tools} if tools else {})}
            if name == "switched":
                body["extra_body"] = {"thinking": "reasoning_content" in messages[index]}
            assert prompt == asked(server, body, monkeypatch), (name, index)


def prompts_of(ids: list[int], labels: list[int]) -> list[list[int]]:
    """The tokens before each learned stretch of a row."""
    before = [NOT_LEARNED, *labels[:-1]]
    return [
        ids[:index]
        for index, (last, label) in enumerate(zip(before, labels, strict=True))
        if label != NOT_LEARNED and last == NOT_LEARNED
    ]
