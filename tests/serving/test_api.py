"""The endpoint over real HTTP, with the real openai SDK."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from serving.engine.sequence import Request
from tests import tiny
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("home")
    named = [f"{name}={path}" for name, path in tiny_adapters.items()]
    roots = [next(iter(tiny_adapters.values())).parent]
    with running_server(settings_for(tiny_base, home, adapter=named, adapter_roots=roots)) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()


def expected_tokens(base: Path, adapter: Path | None, count: int) -> list[int]:
    """Greedy continuation of QUESTION by transformers and PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.eval().generate(**prompt, max_new_tokens=count, do_sample=False)
    return out[0, prompt["input_ids"].shape[1] :].tolist()


def text_of(base: Path, tokens: list[int]) -> str:
    return AutoTokenizer.from_pretrained(base).decode(tokens, skip_special_tokens=True)


def test_two_streams_at_once_are_both_correct_and_usage_is_right_to_the_token(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    answers: dict[str, tuple[str, openai.types.CompletionUsage]] = {}

    def ask(model: str) -> None:
        stream = server.client().chat.completions.create(
            model=model, messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
        text, usage = "", None
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        assert usage is not None
        answers[model] = (text, usage)

    threads = [threading.Thread(target=ask, args=(model,)) for model in ("tiny", "r8")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, adapter in (("tiny", None), ("r8", tiny_adapters["r8"])):
        tokens = expected_tokens(tiny_base, adapter, GREEDY["max_tokens"])
        text, usage = answers[model]
        # A character that the length cuts through is not shown.
        assert text == text_of(tiny_base, tokens).rstrip("\ufffd")
        assert usage.completion_tokens == len(tokens)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_models_lists_base_and_adapters_with_parent_and_digest(server: RunningServer) -> None:
    models = {model.id: model.model_dump() for model in server.client().models.list()}
    assert set(models) == {"tiny", "r2", "r4", "r8", "r16"}
    assert models["r8"]["parent"] == "tiny" and models["tiny"]["parent"] is None
    assert len(models["r8"]["digest"]) == 64
    one = server.client().models.retrieve("r8@1")
    assert one.model_dump()["root"] == "r8@1"


def test_answer_says_which_adapter_gave_it(server: RunningServer) -> None:
    raw = server.client().chat.completions.with_raw_response.create(model="r4", messages=QUESTION, **GREEDY)
    assert raw.headers["x-bianlian-adapter"] == "r4@1"
    digest = raw.headers["x-bianlian-digest"]
    assert server.client().models.retrieve(f"r4@{digest[:10]}").model_dump()["digest"] == digest


def test_same_seed_same_answer_and_n_choices_differ(server: RunningServer) -> None:
    def ask(seed: int) -> list[str | None]:
        reply = server.client().chat.completions.create(
            model="tiny", messages=QUESTION, seed=seed, n=3, temperature=1.0, max_tokens=16
        )
        return [choice.message.content for choice in reply.choices]

    assert ask(5) == ask(5)
    assert len(set(ask(5))) == 3


def test_scale_zero_is_the_base_and_a_blend_of_one_is_that_adapter(server: RunningServer) -> None:
    def ask(model: str, **extra: object) -> str | None:
        reply = server.client().chat.completions.create(model=model, messages=QUESTION, extra_body=extra, **GREEDY)
        return reply.choices[0].message.content

    assert ask("tiny", lora=[{"name": "r8", "scale": 0}]) == ask("tiny")
    assert ask("tiny", lora=[{"name": "r8", "scale": 1}]) == ask("r8")
    assert ask("tiny", lora=[{"name": "r8", "scale": 0.5}, {"id": "r8", "scale": 0.5}]) == ask("r8")


@pytest.mark.parametrize(
    ("model", "lora", "strengths"),
    [
        ("tiny", [], None),
        ("r8", [], None),
        ("tiny", [{"name": "r8"}], None),
        ("tiny", [{"name": "r8", "scale": 0.25}], "r8@1;scale=0.25"),
        ("tiny", [{"name": "r8", "scale": 0.5}, {"name": "r4"}], "r8@1;scale=0.5, r4@1;scale=1"),
        (
            "tiny",
            [{"name": "r8", "scale": 0.5}, {"name": "r4", "scale": 0}, {"id": "r8", "scale": 1}],
            "r8@1;scale=1.5",
        ),
    ],
)
def test_headers_say_how_strong_each_adapter_of_an_answer_is(
    server: RunningServer, model: str, lora: list[dict[str, object]], strengths: str | None
) -> None:
    body = {"model": model, "messages": QUESTION, "max_tokens": 2, "lora": lora}
    for stream in (False, True):
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body | {"stream": stream}) as reply:
            assert reply.headers.get("x-bianlian-lora") == strengths
            named = [part.split(";")[0] for part in (strengths or "").split(", ")]
            assert strengths is None or reply.headers["x-bianlian-adapter"] == "+".join(named)
            reply.read()


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_is_a_bound_and_a_header_says_when_the_prompt_leaves_less(
    server: RunningServer, stream: bool
) -> None:
    longest = server.services.engine.engine.max_model_len
    asked = server.client().chat.completions.with_raw_response.create
    body = {"model": "r8", "messages": QUESTION, "extra_body": {"ignore_eos": True}}
    prompt = asked(**body, max_tokens=1).parse().usage.prompt_tokens
    fits = asked(**body, max_tokens=longest - prompt)
    assert "x-bianlian-max-tokens" not in fits.headers and fits.parse().usage.total_tokens == longest
    body |= {"stream": stream, "max_tokens": 10 * longest}
    if stream:
        reply = asked(**body, stream_options={"include_usage": True})
        *_, last, usage = reply.parse()
        reason, used = last.choices[0].finish_reason, usage.usage
    else:
        reply = asked(**body)
        reason, used = reply.parse().choices[0].finish_reason, reply.parse().usage
    assert reply.headers["x-bianlian-max-tokens"] == str(longest - prompt)
    assert reason == "length" and used.completion_tokens == longest - prompt


def test_a_minimum_that_cannot_be_kept_is_refused(server: RunningServer) -> None:
    longest = server.services.engine.engine.max_model_len
    for limits in ({"min_tokens": 5, "max_tokens": 4}, {"min_tokens": longest, "max_tokens": 2 * longest}):
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={"model": "r8", "messages": QUESTION} | limits)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "min_tokens")


def test_stop_string_ends_the_answer_and_is_not_shown(server: RunningServer) -> None:
    whole = server.client().chat.completions.create(model="r2", messages=QUESTION, **GREEDY).choices[0].message.content
    assert whole
    stop = whole[4:6]
    reply = server.client().chat.completions.create(model="r2", messages=QUESTION, stop=stop, **GREEDY)
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(server: RunningServer, tiny_base: Path) -> None:
    reply = server.client().chat.completions.create(
        model="tiny", messages=QUESTION, logprobs=True, top_logprobs=3, temperature=0, max_tokens=1
    )
    entry = reply.choices[0].logprobs.content[0]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = Qwen3ForCausalLM.from_pretrained(tiny_base)(**prompt).logits[0, -1]
    values, ids = logits.log_softmax(-1).topk(3)
    assert [top.token for top in entry.top_logprobs] == [tokenizer.decode([i]) for i in ids.tolist()]
    assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"model": "r9", "messages": QUESTION}, 404, "model", "did you mean"),
        ({"model": "tiny", "messages": []}, 400, "messages", "messages"),
        ({"model": "tiny", "messages": QUESTION, "temperature": 9}, 400, "temperature", "less than or equal to 2"),
        ({"model": "tiny", "messages": QUESTION, "tools": []}, 400, "tools", "not supported"),
        ({"model": "tiny", "messages": QUESTION, "logit_bias": {"99999": 1}}, 400, None, "vocabulary"),
        (
            {"model": "tiny", "messages": [{"role": "user", "content": "长" * 3000}]},
            400,
            "messages",
            "this model's maximum context length is 512 tokens",  # by which clients know the case
        ),
        ({"model": "tiny", "messages": QUESTION, "stream_options": {}}, 400, None, "stream"),
        ({"model": "tiny", "messages": QUESTION, "lora": [{"name": "r8", "scale": 3}]}, 400, "lora.0.scale", "2"),
    ],
)
def test_bad_requests_name_the_field_and_the_limit(
    server: RunningServer, body: dict[str, object], status: int, param: str | None, words: str
) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param)
    assert words in error["message"]


def test_unknown_endpoint_and_broken_json_get_openai_error_bodies(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    broken = httpx.post(
        f"{server.url}/v1/chat/completions", content="{oops", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 400 and broken.json()["error"]["code"] == "invalid_json"


def test_client_that_leaves_frees_its_blocks(server: RunningServer) -> None:
    body = {"model": "tiny", "messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 400}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        next(reply.iter_lines())
    server.assert_nothing_held()


def test_compare_streams_all_lanes_and_says_who_they_are(server: RunningServer) -> None:
    body = {
        "messages": QUESTION,
        "lanes": [{"model": "tiny"}, {"model": "r8"}, {"model": "r8", "scale": 0}],
        "seed": 3,
        "max_tokens": 24,
        "temperature": 1.0,
    }
    events = []
    with httpx.stream("POST", f"{server.url}/v1/compare", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                events.append(json.loads(line[6:]))
    starts = [event for event in events if event["type"] == "start"]
    assert [(e["lane"], e["adapter"]) for e in starts] == [(0, "tiny"), (1, "r8@1"), (2, "tiny")]
    text = {lane: "".join(e["text"] for e in events if e["type"] == "delta" and e["lane"] == lane) for lane in range(3)}
    ends = {e["lane"]: e for e in events if e["type"] == "end"}
    assert set(ends) == {0, 1, 2}
    assert text[0] == text[2], "strength 0 is the base, and the dice are the same"
    assert text[0] != text[1]


def test_load_and_unload_by_path(server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path]) -> None:
    fresh = tiny.save_adapter(tiny_adapters["r2"].parent / "fresh", tiny_base, rank=6, seed=9)
    client = server.client()
    load = {"lora_name": "fresh", "lora_path": str(fresh)}
    assert httpx.post(f"{server.url}/v1/load_lora_adapter", json=load).status_code == 200
    assert client.chat.completions.create(model="fresh", messages=QUESTION, **GREEDY).model == "fresh"
    other = {"lora_name": "fresh", "lora_path": str(tiny_adapters["r4"])}
    assert httpx.post(f"{server.url}/v1/load_lora_adapter", json=other).status_code == 409
    assert httpx.post(f"{server.url}/v1/load_lora_adapter", json=other | {"load_inplace": True}).status_code == 200
    assert client.models.retrieve("fresh").model_dump()["version"] == 2
    unloaded = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "fresh"})
    assert unloaded.status_code == 200 and unloaded.json()["bytes_freed"] == 0  # r4 holds the same weights
    assert "fresh" not in {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="fresh", messages=QUESTION)


@pytest.mark.parametrize(
    ("path", "status"), [("/nonexistent", 403), ("{root}/nothing-here", 404), ("{root}/../../etc", 403)]
)
def test_loading_from_elsewhere_is_refused(
    server: RunningServer, tiny_adapters: dict[str, Path], path: str, status: int
) -> None:
    body = {"lora_name": "x", "lora_path": path.format(root=tiny_adapters["r2"].parent)}
    reply = httpx.post(f"{server.url}/v1/load_lora_adapter", json=body)
    assert reply.status_code == status
    assert "x" not in {model.id for model in server.client().models.list()}


def test_unload_with_requests_in_flight_is_a_conflict_unless_forced(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path]
) -> None:
    busy = tiny.save_adapter(tiny_adapters["r2"].parent / "busy", tiny_base, rank=5, seed=11)
    httpx.post(f"{server.url}/v1/load_lora_adapter", json={"lora_name": "busy", "lora_path": str(busy)})
    body = {"model": "busy", "messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 480}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        refused = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "busy"})
        assert refused.status_code == 409 and "1 request" in refused.json()["error"]["message"]
        forced = httpx.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "busy", "force": True})
        assert forced.status_code == 200 and forced.json()["bytes_freed"] > 0
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "unloaded by force" in rest[-1]["error"]["message"]


def test_health_ready_version(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/ready").json()["base"] == "tiny"
    assert httpx.get(f"{server.url}/version").json()["version"]


def test_keys_separate_users_from_the_admin(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path, api_key=["user-key"], admin_key="admin-key")) as running:

        def status(path: str, key: str | None, body: dict[str, object] | None = None) -> int:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            send = httpx.get if body is None else httpx.post
            options = {} if body is None else {"json": body}
            return send(f"{running.url}{path}", headers=headers, **options).status_code

        assert [status("/v1/models", key) for key in (None, "wrong", "user-key", "admin-key")] == [401, 401, 200, 200]
        load = {"lora_name": "x", "lora_path": "/nowhere"}
        assert status("/v1/load_lora_adapter", "user-key", load) == 403
        assert status("/v1/unload_lora_adapter", "admin-key", {"lora_name": "x"}) == 404


def test_callers_may_step_back_and_only_the_admin_may_go_ahead(tiny_base: Path, tmp_path: Path) -> None:
    options = {"api_key": ["key-a", "key-b"], "admin_key": "admin-key"}
    with running_server(settings_for(tiny_base, tmp_path, **options)) as running:
        seen: list[tuple[str, int]] = []
        add = running.services.engine.engine.add

        def noted(request: Request) -> None:
            seen.append((request.key, request.priority))
            add(request)

        running.services.engine.engine.add = noted  # type: ignore[method-assign]

        def ask(key: str, priority: int, path: str = "chat/completions") -> int:
            body = {"model": "tiny", "messages": QUESTION, "max_tokens": 1, "priority": priority}
            if path == "compare":
                body = {"lanes": [{"model": body.pop("model")}], **body}
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{running.url}/v1/{path}", json=body, headers=headers).status_code

        assert [ask("key-a", 0), ask("key-a", 3), ask("key-b", 0, "compare"), ask("admin-key", -1)] == [200] * 4
        assert [ask("key-a", -1), ask("key-b", -1, "compare"), ask("admin-key", -101)] == [403, 403, 400]
        (a, zero), (again, three), (b, _), (admin, ahead) = seen
        assert (zero, three, ahead) == (0, 3, -1) and a == again and len({a, b, admin}) == 3
        assert not {a, b, admin} & {"", "key-a", "key-b", "admin-key"}


def test_publishing_under_load_changes_no_running_answer_and_reaches_the_next(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Running requests finish on the old version token for token; new ones get the new one; old weights go."""
    with running_server(settings_for(tiny_base, tmp_path)) as running:
        store, bank = running.services.registry.store, running.services.engine.engine.bank
        old = store.publish(tiny_adapters["r8"], "face")
        client = running.client()
        long = {"temperature": 0, "max_tokens": 300, "extra_body": {"ignore_eos": True}}
        alone = client.chat.completions.create(model="face", messages=QUESTION, **long).choices[0].message.content
        stream = client.chat.completions.create(model="face", messages=QUESTION, stream=True, **long)
        first = next(iter(stream))
        new = store.publish(tiny_adapters["r16"], "face")
        changed = client.chat.completions.with_raw_response.create(model="face", messages=QUESTION, **GREEDY)
        assert changed.headers["x-bianlian-adapter"] == str(new) == "face@2"
        assert bank.status(old.digest) == "active", "a lease still holds it"
        text = "".join(c.delta.content or "" for chunk in [first, *stream] for c in chunk.choices)
        assert text == alone
        assert changed.parse().choices[0].message.content != alone[:20]
        running.assert_nothing_held()
        deadline = time.monotonic() + 10
        while bank.status(old.digest) != "cold" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert bank.status(old.digest) == "cold", "freed with the last lease"
        pinned = client.chat.completions.with_raw_response.create(model="face@1", messages=QUESTION, **GREEDY)
        assert pinned.headers["x-bianlian-adapter"] == "face@1"
