"""Event streams as a reader that knows the standard, but not us, sees them; and curl."""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from conftest import BASE, PERSONA, QUESTION, ROOT
from httpx_sse import connect_sse


def curl(url: str, body: dict[str, object], *options: str) -> subprocess.CompletedProcess[str]:
    headers = ["-H", "Content-Type: application/json"]
    command = ["curl", "-sS", *options, url, *headers, "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_events_of_a_chat(url: str) -> None:
    body = {"model": PERSONA, "messages": QUESTION, "max_tokens": 24, "stream": True, "n": 2}
    with (
        httpx.Client(timeout=60) as client,
        connect_sse(client, "POST", f"{url}/chat/completions", json=body) as source,
    ):
        source.response.raise_for_status()
        assert source.response.headers["content-type"].startswith("text/event-stream")
        assert source.response.headers["x-bianlian-adapter"] == "wukong@1"
        events = list(source.iter_sse())
    assert {(event.event, event.id) for event in events} == {("message", "")}
    assert events[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index in range(2):
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] in (["length"], ["stop"])


def test_an_error_before_the_stream_is_json(url: str) -> None:
    reply = httpx.post(f"{url}/chat/completions", json={"model": "wukon", "messages": QUESTION, "stream": True})
    assert reply.status_code == 404 and "did you mean" in reply.json()["error"]["message"]


def test_curl_shows_events_as_they_come(url: str) -> None:
    done = curl(f"{url}/chat/completions", {"model": BASE, "messages": QUESTION, "stream": True, "max_tokens": 8}, "-N")
    events = [line for line in done.stdout.splitlines() if line]
    assert done.returncode == 0 and events[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in events) and len(events) > 3


def test_vllms_load_and_unload_by_curl(url: str, adapter_root: Path) -> None:
    adapter = adapter_root / "by-curl"  # as PEFT left it, without our manifest
    persona = ROOT / "adapters" / "bundled" / "personas" / "wukong"
    shutil.copytree(persona, adapter, ignore=shutil.ignore_patterns("bianlian.json"))
    asked = {"model": "by-curl", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    load = {"lora_name": "by-curl", "lora_path": str(adapter)}
    failing = ("--fail-with-body",)
    assert curl(f"{url}/chat/completions", asked, *failing).returncode == 22
    loaded = curl(f"{url}/load_lora_adapter", load, *failing)
    assert loaded.returncode == 0 and "Success: LoRA adapter 'by-curl'" in loaded.stdout
    models = {model["id"]: model for model in httpx.get(f"{url}/models").json()["data"]}
    assert models["by-curl"]["parent"] == BASE
    answer = json.loads(curl(f"{url}/chat/completions", asked, *failing).stdout)["choices"][0]["message"]["content"]
    base = json.loads(curl(f"{url}/chat/completions", asked | {"model": BASE}).stdout)["choices"][0]["message"][
        "content"
    ]
    assert answer and answer != base
    unloaded = curl(f"{url}/unload_lora_adapter", {"lora_name": "by-curl"}, *failing)
    assert unloaded.returncode == 0 and "unloaded" in unloaded.stdout
    assert curl(f"{url}/chat/completions", asked, *failing).returncode == 22


@pytest.mark.parametrize("path", ["/models", "/models/wukong"])
def test_curl_head(url: str, path: str) -> None:
    done = subprocess.run(["curl", "-sSI", f"{url}{path}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("HTTP/1.1 200")
