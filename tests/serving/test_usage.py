"""Usage agrees to the token with what the answers said, whoever asked and however they ended."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import openai
import pytest

from serving.database.database import Database
from serving.keys import KeyStore
from serving.usage import UsageBook, UsageLedger
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for

ROOT = Path(__file__).parents[2]
LONG = [{"role": "user", "content": "one two three four five six seven " * 4}]  # several blocks, to be found again


@pytest.fixture(scope="module")
def admin(server: RunningServer) -> str:
    return KeyStore(server.services.database).create("the admin", admin=True)[1]


def new_client(server: RunningServer, name: str) -> openai.OpenAI:
    _, key = KeyStore(server.services.database).create(name)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def report(server: RunningServer, bearer: str, **query: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/usage", params=query, headers={"authorization": f"Bearer {bearer}"})


def test_usage_is_what_the_answers_said(server: RunningServer, admin: str) -> None:
    client = new_client(server, "exact")
    said = []
    for model, options in (
        ("tiny", {}),
        ("r8", {"n": 3, "temperature": 1.0, "max_tokens": 12}),
        ("r8@1", {}),
        ("r2", {"stream": True, "stream_options": {"include_usage": True}}),
        ("tiny", {"extra_body": {"lora": [{"name": "r2", "scale": 0.5}, {"name": "r8"}]}}),
    ):
        reply = client.chat.completions.create(model=model, messages=LONG, **GREEDY | options)
        usage = [chunk.usage for chunk in reply][-1] if options.get("stream") else reply.usage
        said.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens))
    client.completions.create(model="tiny", prompt="one two", max_tokens=3)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)
    rows = report(server, client.api_key, group_by="model").json()["data"]
    booked = {row.pop("model"): tuple(row.values()) for row in rows}
    assert set(booked) == {"tiny", "r8@1", "r2@1", "r2@1+r8@1"}
    assert booked["r2@1"] == (1, *said[3]) and booked["r2@1+r8@1"] == (1, *said[4])
    assert booked["r8@1"] == (2, *(sum(pair) for pair in zip(said[1], said[2], strict=True)))
    assert booked["tiny"][0] == 2 and booked["tiny"][3] == said[0][2] + 3
    assert said[2][1] > 0, "nothing was cached; the figure was not tested"


def test_a_client_that_leaves_has_used_what_was_generated(server: RunningServer) -> None:
    client = new_client(server, "leaver")
    stream = client.chat.completions.create(
        model="tiny", messages=QUESTION, stream=True, max_tokens=450, extra_body={"ignore_eos": True}
    )
    for _ in range(5):
        next(stream)
    stream.close()
    server.assert_nothing_held()
    [row] = report(server, client.api_key).json()["data"]
    assert row["requests"] == 1 and row["prompt_tokens"] > 0 and 3 <= row["completion_tokens"] <= 450
    assert row["key"] == "leaver" and row["day"] == datetime.now(UTC).date().isoformat()


def test_every_lane_is_booked_under_its_version(server: RunningServer) -> None:
    client = new_client(server, "comparer")
    body = {"messages": QUESTION, "lanes": [{"model": "tiny"}, {"model": "r2"}], **GREEDY}
    headers = {"authorization": f"Bearer {client.api_key}"}
    reply = httpx.post(f"{server.url}/v1/compare", json=body, headers=headers, timeout=30)
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    ends = {event["lane"]: event for event in map(json.loads, lines) if event["type"] == "end"}
    rows = {row["model"]: row for row in report(server, client.api_key).json()["data"]}
    for lane, model in enumerate(("tiny", "r2@1")):
        assert rows[model]["requests"] == 1
        assert rows[model]["completion_tokens"] == ends[lane]["completion_tokens"]


def test_a_user_sees_the_own_usage_and_an_admin_everybodys(server: RunningServer, admin: str) -> None:
    names = ["x' OR '1'='1", "other"]
    clients = [new_client(server, name) for name in names]
    for client in clients:
        client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=2)
    for name, client in zip(names, clients, strict=True):
        assert [row["key"] for row in report(server, client.api_key).json()["data"]] == [name]
    everybody = report(server, admin, group_by="key").json()
    assert set(names) <= {row["key"] for row in everybody["data"]}
    [total] = report(server, admin, group_by="").json()["data"]
    assert total["requests"] == sum(row["requests"] for row in everybody["data"])
    assert report(server, admin, to="2020-01-31").json() | {"data": 0} == {
        "object": "list",
        "from": "2020-01-02",
        "to": "2020-01-31",
        "group_by": ["key", "model", "day"],
        "data": 0,
    }
    assert report(server, "wrong").status_code == 401


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-02-02", "to": "2026-01-01"}, "from"),
        ({"group_by": "1; DROP TABLE usage"}, "group_by"),
        ({"key": "other"}, "key"),
        ({"to": "0001-01-01"}, None),
        ({"to": "9999-12-31"}, None),
    ],
)
def test_a_wrong_question_is_refused_by_name(server: RunningServer, admin: str, query: dict, param: str | None) -> None:
    reply = report(server, admin, **query)
    assert reply.status_code == (400 if param else 200), reply.text
    assert param is None or reply.json()["error"]["param"] == param


def test_what_was_used_is_written_when_the_server_stops(tiny_base: Path, tmp_path: Path, database_url: str) -> None:
    settings = settings_for(tiny_base, tmp_path / "home", database=database_url)
    with running_server(settings) as running:
        reply = running.client().chat.completions.create(model="tiny", messages=QUESTION, **GREEDY)
    database = Database(settings.database_url)
    today = datetime.now(UTC).date()
    [row] = UsageBook(database, UsageLedger()).report(today, today)
    database.close()
    assert row["key"] == "--no-key" and row["completion_tokens"] == reply.usage.completion_tokens
    command = [sys.executable, "-m", "app", "keys", "usage", "--database", settings.database_url]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tiny" in shown and "--no-key" in shown and str(row["completion_tokens"]) in shown
