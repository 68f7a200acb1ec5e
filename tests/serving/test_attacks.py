"""What a hostile or careless client may send: it gets an error that says why, and nobody else notices."""

import asyncio
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    with running_server(settings_for(tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"])) as running:
        yield running
        running.assert_nothing_held()


def ask(server: RunningServer, **body: object) -> httpx.Response:
    sent = {"model": "tiny", "messages": QUESTION, **GREEDY, **body}
    content = json.dumps(sent)  # plain json, which spells lone surrogates and NaN
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"top_k": 2**63}, 200),
        ({"lora": [{"name": "r8", "scale": 2}] * 5}, 400),  # strengths add up
        ({"lora": [{"name": "r8", "scale": 0.001}] * 2000}, 400),
        ({"model": "tini", "lora": [{"name": "r8"}]}, 404),
        ({"guided_regex": "a\\"}, 400),
        ({"guided_regex": "a" * 200_000}, 400),
        ({"seed": 2**80}, 200),
        ({"seed": -(2**80)}, 200),
        ({"temperature": float("nan")}, 400),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400),
        ({"stop": ["\udfff"]}, 400),
        ({"messages": [{"role": "user", "content": None}]}, 400),
        ({"messages": [{"role": "user", "content": "x " * 1_000_000}]}, 400),
        ({"messages": [{"role": "user", "content": "x " * 3_000_000}]}, 413),
        ({"model": "\0"}, 404),
        ({"model": "r8@²"}, 404),
        ({"model": "r8@" + "9" * 5000}, 404),
        ({"model": "w" * 100_000}, 404),
        ({"model": "../../etc"}, 404),
        ({"model": "\ud800"}, 400),
        ({"lora": [{"name": "a\0b"}]}, 404),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_odd_values_get_an_error_body_and_never_a_500(server: RunningServer, body: dict, status: int) -> None:
    reply = ask(server, **body)
    assert reply.status_code == status, reply.text[:300]
    assert status == 200 or reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["chat/completions", "embeddings", "adapters", "compare"])
@pytest.mark.parametrize("pieces", [[(5 << 20) - 1], [1 << 20] * 5, [1 << 20] * 9])
def test_a_body_that_turns_out_too_large_is_413(server: RunningServer, path: str, pieces: list[int]) -> None:
    """Sent without its length, so that it is known only when the limit is passed; perhaps by its last piece."""
    body = (b'{"input": "' + b"x" * size for size in pieces)
    reply = httpx.post(f"{server.url}/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_a_comparison_cannot_repeat_is_refused(server: RunningServer, seed: int) -> None:
    lanes = [{"model": "tiny"}]
    body = {"messages": [{"role": "user", "content": "a"}], "lanes": lanes, "max_tokens": 1}
    assert httpx.post(f"{server.url}/v1/compare", json=body | {"seed": seed}).status_code == 400
    assert httpx.post(f"{server.url}/v1/compare", json=body | {"seed": seed // 2}).text.count('"type":"end"') == 1


def test_a_body_without_content_type_says_which_header_is_missing(server: RunningServer) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=b'{"model": "tiny"}')
    assert reply.status_code == 400 and "Content-Type: application/json" in reply.json()["error"]["message"]


def test_a_name_that_resolves_here_cannot_reach_an_open_server(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example"}).status_code == 400
    allowed = httpx.get(f"{server.url}/v1/models", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in allowed.headers


def test_a_deleted_or_damaged_adapter_takes_nobody_down(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    store = server.services.registry.store
    gone = store.publish(tiny_adapters["r2"], "gone")
    damaged = store.publish(tiny_adapters["r4"], "damaged")
    assert ask(server, model="gone").status_code == 200
    body = {"model": "gone", "messages": QUESTION, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        shutil.rmtree(gone.directory)
        (damaged.directory / "bianlian.json").write_text("{")
        assert list(lines)[-2] == "data: [DONE]"
    assert {model.id for model in server.client().models.list()} == {"tiny", "r8"}
    assert ask(server, model="gone").status_code == 404
    assert ask(server, model="r8").status_code == 200
    for name in ("gone", "damaged"):
        shutil.rmtree(store.root / name)


def changed_config(directory: Path, **fields: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def changed_tensors(directory: Path, value: float) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({key: torch.full_like(tensor, value) for key, tensor in load_file(path).items()}, path)


def fifo_config(directory: Path) -> None:
    (directory / "adapter_config.json").unlink()
    os.mkfifo(directory / "adapter_config.json")


def link_outside(directory: Path) -> None:
    weights = directory / "adapter_model.safetensors"
    outside = directory.parents[2] / "outside.safetensors"
    weights.rename(outside)
    weights.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda d: changed_config(d, r="8"), 400),
        (lambda d: changed_config(d, r=0), 400),
        (lambda d: changed_config(d, lora_alpha=None), 400),
        (lambda d: changed_config(d, lora_alpha=10**400), 400),
        (lambda d: changed_config(d, rank_pattern={"(([a-z0-9_.])+)+X": 4}), 400),
        (lambda d: changed_config(d, rank_pattern=[1]), 400),
        (lambda d: (d / "adapter_config.json").write_text("[" * 200_000), 400),
        (lambda d: changed_tensors(d, float("nan")), 400),
        (lambda d: changed_tensors(d, float("inf")), 400),
        (fifo_config, 404),
        (link_outside, 403),
    ],
)
def test_broken_adapters_are_refused_and_leave_nothing(
    server: RunningServer, tiny_adapters: dict[str, Path], damage: object, status: int
) -> None:
    uploads = server.services.settings.root / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    directory = tiny.copy(tiny_adapters["r2"], uploads / "broken")
    damage(directory)
    try:
        body = {"lora_name": "broken", "lora_path": str(directory)}
        reply = httpx.post(f"{server.url}/v1/load_lora_adapter", json=body)
        assert reply.status_code == status, reply.text[:300]
        assert "broken" not in {model.id for model in server.client().models.list()}
    finally:
        shutil.rmtree(directory)


def test_the_base_is_not_unloaded_and_its_names_are_not_taken(
    server: RunningServer, tiny_adapters: dict[str, Path]
) -> None:
    for name in ("tiny", "base"):
        assert httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 400
    with pytest.raises(Exception, match="base model's name"):
        server.services.registry.attach("base", tiny_adapters["r2"])
    assert httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "r8@1"}).status_code == 400


def test_a_non_streaming_client_that_leaves_frees_its_blocks(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": QUESTION, "ignore_eos": True, "max_tokens": 480}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.05)
    server.assert_nothing_held()


def test_draining_refuses_new_requests_and_ends_running_ones_with_an_error(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path)) as running:
        engine = running.services.engine
        slow = threading.Event()
        step = engine.engine.step
        engine.engine.step = lambda: (slow.wait(0.02), step())[1]  # type: ignore[method-assign]
        body = {"model": "tiny", "messages": QUESTION, "ignore_eos": True, "max_tokens": 480, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=30) as reply:
            lines = reply.iter_lines()
            next(lines)
            engine.drain(0.1)
            assert ask(running).status_code == 503
            rest = [line for line in lines if line.startswith("data: ")]
        assert "shutting down" in json.loads(rest[-2][6:])["error"]["message"] and rest[-1] == "data: [DONE]"
        running.assert_nothing_held()


def test_an_error_in_a_callers_clean_up_does_not_stop_the_engine(server: RunningServer) -> None:
    engine = server.services.engine

    async def run() -> list[object]:
        from serving.engine.sequence import Request, SamplingParams

        def fails(request_id: str) -> None:
            raise RuntimeError("clean-up")

        [stream] = engine.submit([Request("x", (5, 6), SamplingParams(max_tokens=3, ignore_eos=True))], fails)
        async with stream:
            return [delta async for delta in stream]

    assert asyncio.run(run())[-1].finish_reason == "length"
    deadline = time.monotonic() + 5
    while engine.engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.alive and ask(server).status_code == 200


def test_a_full_queue_refuses_with_429_and_counts_what_is_on_its_way(tiny_base: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_base, tmp_path, max_waiting=3)
    with running_server(settings) as running:
        held = threading.Event()
        running.services.engine.post(held.wait)  # the engine's thread is busy: everything sent now waits
        replies: list[httpx.Response] = []
        senders = [threading.Thread(target=lambda: replies.append(ask(running, n=1))) for _ in range(3)]
        for sender in senders:
            sender.start()
        while len(running.services.engine._streams) < 3:
            time.sleep(0.01)
        refused = ask(running)
        held.set()
        for sender in senders:
            sender.join()
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        running.assert_nothing_held()
