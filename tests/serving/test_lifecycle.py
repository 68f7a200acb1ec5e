"""Adapters published, listed, pinned, rolled back and deleted over HTTP, while answers stream."""

import io
import json
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from adapters.errors import Conflict
from serving.engine.sequence import TokenDelta
from serving.watch import HALF_S, SETTLE_S, DirectoryWatcher, publish_found
from tests import tiny
from tests.full_disk import full_disk
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    settings = settings_for(
        tiny_base,
        tmp_path_factory.mktemp("home"),
        adapter=[f"fixed={tiny_adapters['r16']}"],
        adapter_roots=[tiny_adapters["r2"].parent],
        max_upload=8 / 1024,
    )
    with running_server(settings) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays_behind(server: RunningServer) -> Iterator[None]:
    yield
    server.assert_nothing_held()
    registry = server.services.registry
    for alias in server.services.chat.aliases.all():
        server.services.chat.aliases.delete(alias.name)
    for name in registry.store.names():
        registry.remove(name)
    registry.refresh()
    uploads = server.services.settings.uploads
    assert not [path for path in uploads.glob(".incoming-*")], "an upload left something"
    assert not [path for path in registry.store.root.glob(".[ir]*")], "the store was left untidy"


def send(server: RunningServer, method: str, path: str, **options: object) -> httpx.Response:
    return httpx.request(method, f"{server.url}{path}", timeout=30, **options)  # type: ignore[arg-type]


def loose(adapter: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, (adapter / name).read_bytes())) for name in FILES]


def zipped(adapter: Path, folder: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in FILES:
            file.write(adapter / name, folder + name)
    return buffer.getvalue()


def tarred(adapter: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.add(adapter, "adapter")
    return buffer.getvalue()


def upload(server: RunningServer, adapter: Path, name: str = "face", **fields: str) -> httpx.Response:
    return send(server, "POST", "/v1/adapters", data={"name": name, **fields}, files=loose(adapter))


def ask(server: RunningServer, model: str, **body: object) -> httpx.Response:
    sent = {"model": model, "messages": QUESTION, **GREEDY, "max_tokens": 6, **body}
    return send(server, "POST", "/v1/chat/completions", json=sent)


def test_files_zip_and_tar_publish_the_same_adapter(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    first = upload(server, tiny_adapters["r2"], notes="第一版")
    assert first.status_code == 201, first.text
    assert first.json()["id"] == "face@1" and first.json()["new"] is True and len(first.json()["digest"]) == 64
    for content in (zipped(tiny_adapters["r2"], "r2/"), tarred(tiny_adapters["r2"])):
        again = send(server, "POST", "/v1/adapters", data={"name": "face"}, files={"file": ("r2.archive", content)})
        assert again.status_code == 200, again.text
        assert again.json()["new"] is False and "no new version" in again.json()["message"]
    assert upload(server, tiny_adapters["r4"]).json()["id"] == "face@2"
    noted = upload(server, tiny_adapters["r4"], notes="第二版").json()
    assert noted["id"] == "face@2" and noted["new"] is False and "new notes" in noted["message"]
    assert ask(server, "face").headers["x-bianlian-adapter"] == "face@2"
    one, two = send(server, "GET", "/v1/adapters/face").json()["versions"]
    assert (one["number"], one["rank"], one["notes"], one["current"]) == (1, 2, "第一版", False)
    assert (two["rank"], two["current"], two["status"], two["problem"]) == (4, True, "active", None)
    assert two["notes"] == "第二版"
    files = sum((tiny_adapters["r4"] / name).stat().st_size for name in FILES)
    assert two["bytes"] == files + len("第二版".encode())
    assert two["effect"]["verdict"] == "ok" and abs(two["created"] - time.time()) < 3600


def test_the_list_says_where_everything_sits(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    upload(server, tiny_adapters["r2"])
    listed = send(server, "GET", "/v1/adapters").json()
    cards = {card["id"]: card for card in listed["data"]}
    assert set(cards) == {"face", "fixed"} and cards["fixed"]["source"] == "path"
    assert cards["face"]["bytes_in_memory"] > 0 and listed["bank"]["host"] >= 1
    pinned = send(server, "POST", "/v1/adapters/face/pin").json()
    assert pinned["pinned"] is True and pinned["id"] == "face@1"
    assert send(server, "POST", "/v1/adapters/face@1/unpin").json()["pinned"] is False
    assert send(server, "POST", "/v1/adapters/face/warm").json()["status"] in ("warm", "active")
    for path in ("/v1/adapters/nobody", "/v1/adapters/%00", "/v1/adapters/..%2f..", "/v1/adapters/名字"):
        assert send(server, "GET", path).status_code == 404
    for action in ("pin", "unpin", "warm", "rollback"):
        assert send(server, "POST", f"/v1/adapters/fac/{action}").json()["error"]["param"] == "name"
        assert send(server, "POST", f"/v1/adapters/tiny/{action}").status_code == 400


def test_rollback_goes_back_or_to_a_version(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    for name in ("r2", "r4", "r8"):
        upload(server, tiny_adapters[name])
    assert send(server, "POST", "/v1/adapters/face/rollback").json()["current"] == 2
    assert send(server, "POST", "/v1/adapters/face/rollback", json={"version": 1}).json()["current"] == 1
    assert ask(server, "face").headers["x-bianlian-adapter"] == "face@1"
    assert send(server, "POST", "/v1/adapters/face/rollback").status_code == 409
    assert send(server, "POST", "/v1/adapters/face/rollback", json={"version": 9}).status_code == 404
    assert send(server, "POST", "/v1/adapters/fixed/rollback").status_code == 409


def test_delete_while_streaming_waits_or_ends_the_stream(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    upload(server, tiny_adapters["r2"])
    upload(server, tiny_adapters["r4"])
    body = {"model": "face", "messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 480}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        assert send(server, "GET", "/v1/adapters/face").json()["leases"] == 1
        refused = send(server, "DELETE", "/v1/adapters/face@2")
        assert refused.status_code == 409 and "1 request" in refused.json()["error"]["message"]
        gone = send(server, "DELETE", "/v1/adapters/face@2?force=true").json()
        assert gone["versions"] == ["face@2"] and gone["bytes_freed"] > 0
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "unloaded by force" in rest[-1]["error"]["message"]
    assert ask(server, "face").headers["x-bianlian-adapter"] == "face@1"
    assert send(server, "DELETE", "/v1/adapters/face").json()["bytes_freed"] > 0
    assert ask(server, "face").status_code == 404
    assert not (server.services.registry.store.root / "face").exists()
    assert send(server, "DELETE", "/v1/adapters/face").status_code == 404
    assert send(server, "DELETE", "/v1/adapters/tiny").status_code == 400


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": "你好"}),
        ("/v1/responses", {"input": "你好"}),
        ("/v1/embeddings", {"input": ["你好", "再见"]}),
    ],
)
def test_a_plain_answer_that_is_ended_by_force_is_503_and_says_why(
    server: RunningServer,
    tiny_adapters: dict[str, Path],
    endpoint: str,
    body: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(server, tiny_adapters["r2"])
    engine, begun, never = server.services.engine.engine, threading.Event(), threading.Event()

    def no_step() -> list[TokenDelta]:
        begun.set()
        never.wait(0.005)
        return []

    monkeypatch.setattr(engine, "step", no_step)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(send, server, "POST", endpoint, json={"model": "face", **body})
        assert begun.wait(30)
        assert send(server, "DELETE", "/v1/adapters/face?force=true").status_code == 200
        reply = asked.result()
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (503, "adapter_unloaded"), reply.text
    assert "unloaded by force" in error["message"] and int(reply.headers["retry-after"]) >= 1


def test_deleting_a_name_leaves_requests_on_the_same_weights_under_another(
    server: RunningServer, tiny_adapters: dict[str, Path]
) -> None:
    for name in ("one", "two"):
        upload(server, tiny_adapters["r2"], name)
    body = {"model": "one", "messages": QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 60}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        gone = send(server, "DELETE", "/v1/adapters/two?force=true")
        assert gone.status_code == 200 and gone.json()["bytes_freed"] == 0
        assert not [line for line in lines if '"error"' in line]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("../up", 400),
        ("a/b", 400),
        ("名字", 400),
        ("a\0b", 400),
        ("", 400),
        ("x" * 65, 400),
        ("tiny", 409),
        ("base", 409),
    ],
)
def test_names_that_may_not_be_are_refused(
    server: RunningServer, tiny_adapters: dict[str, Path], name: str, status: int
) -> None:
    reply = upload(server, tiny_adapters["r2"], name)
    assert reply.status_code == status and reply.json()["error"]["param"] == "name"


def broken(adapter: Path, **changed: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    content = {name: (adapter / name).read_bytes() for name in FILES} | {FILES[1]: changed["weights"]}
    return [("files", (name, data)) for name, data in content.items()]


def test_what_does_not_fit_the_base_never_reaches_the_store(
    server: RunningServer, tiny_adapters: dict[str, Path]
) -> None:
    r2 = tiny_adapters["r2"]
    weights = (r2 / FILES[1]).read_bytes()
    cases: list[tuple[object, str]] = [
        (broken(r2, weights=weights[: len(weights) // 2]), "not a readable safetensors"),
        (broken(r2, weights=b"\xff" * 8 + weights[8:]), "not a readable safetensors"),  # a header of 2⁶⁴ bytes
        (broken(r2, weights=(tiny_adapters["r8"] / FILES[1]).read_bytes()), "rank"),
        ([("files", ("adapter_config.json", b"[" * 100_000)), loose(r2)[1]], "not JSON"),
        ([loose(r2)[0], ("files", ("adapter_model.bin", b"PK\x03\x04"))], "pickle"),
        ([("file", ("adapter_model.bin", b"PK\x03\x04"))], "pickle"),
        ([*loose(r2), loose(r2)[0]], "twice"),
        ([("file", ("x.zip", zipped(r2, "../")))], "relative path"),
        ([("file", ("x.zip", b"PK" + bytes(2000)))], "cannot be read"),
        ([("weights", ("a.zip", zipped(r2)))], "not supported"),
    ]
    for files, words in cases:
        reply = send(server, "POST", "/v1/adapters", data={"name": "face"}, files=files)
        assert reply.status_code == 400 and words in reply.json()["error"]["message"], reply.text
        assert str(server.services.settings.root) not in reply.text
        assert not server.services.registry.store.numbers("face")
    manifest = {"name": "face", "base_name": "other", "base_fingerprint": "0" * 64, "template_hash": ""}
    foreign = [*loose(r2), ("files", ("bianlian.json", json.dumps(manifest).encode()))]
    reply = send(server, "POST", "/v1/adapters", data={"name": "face"}, files=foreign)
    assert reply.status_code == 400 and "trained on base 'other'" in reply.text
    assert not server.services.registry.store.numbers("face")


def test_bodies_beyond_the_limit_are_refused(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    large = [*loose(tiny_adapters["r2"]), ("files", ("README.md", bytes(10 << 20)))]
    reply = send(server, "POST", "/v1/adapters", data={"name": "face"}, files=large)
    assert reply.status_code == 413
    chunks = (bytes(1 << 20) for _ in range(12))
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert send(server, "POST", "/v1/adapters", content=chunks, headers=headers).status_code in (400, 413)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in FILES:
            file.write(tiny_adapters["r2"] / name, name)
        file.writestr("zeros", bytes(9 << 20))
    bomb = send(server, "POST", "/v1/adapters", data={"name": "face"}, files={"file": ("x.zip", buffer.getvalue())})
    assert bomb.status_code == 400 and "max-upload" in bomb.json()["error"]["message"]
    assert not server.services.registry.store.numbers("face")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--x\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nface',
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"n" * 100_000 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xff\r\n--x--\r\n',
        b"--x\r\n" + b"A" * 100_000,
        b"not a form at all",
    ],
    ids=range(8),
)
def test_a_form_that_is_none_gets_an_error(server: RunningServer, content: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    reply = send(server, "POST", "/v1/adapters", content=content, headers=headers)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_a_full_disk_is_507_and_leaves_nothing(
    server: RunningServer, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    upload(server, tiny_adapters["r2"])
    large = {"file": ("large.zip", b"x" * (3 << 20))}
    targets = {"targets": [{"model": "face"}]}
    with full_disk(64 << 10):
        refused = [
            send(server, "POST", "/v1/adapters", data={"name": "new"}, files=large),
            send(server, "POST", "/v1/files", data={"purpose": "adapter"}, files=large),
        ]
    with full_disk(0):
        refused += [
            send(server, "PUT", "/v1/aliases/persona", json=targets),
            upload(server, tiny_adapters["r4"]),
        ]
    for reply in refused:
        assert reply.status_code == 507, reply.text
        error = reply.json()["error"]
        assert error["code"] == "insufficient_storage" and "delete adapters or files" in error["message"]
    store = server.services.registry.store
    assert store.names() == ["face"] and store.numbers("face") == [1]
    assert not server.services.chat.aliases.all() and not [path for path in store.aliases.glob("*")]
    assert send(server, "GET", "/v1/files").json()["data"] == []
    assert send(server, "PUT", "/v1/aliases/persona", json=targets).status_code == 200
    assert upload(server, tiny_adapters["r4"]).json()["id"] == "face@2"


def test_an_upload_that_breaks_off_leaves_nothing(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    request = httpx.Request("POST", server.url, data={"name": "face"}, files=loose(tiny_adapters["r2"]))
    content = request.read()
    host, port = server.url.removeprefix("http://").split(":")
    uploads = server.services.settings.uploads
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/adapters HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n"
        connection.sendall((head + f"Content-Type: {request.headers['content-type']}\r\n\r\n").encode())
        connection.sendall(content[: len(content) // 2])
        deadline = time.monotonic() + 10
        while not list(uploads.glob(".incoming-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(uploads.glob(".incoming-*")), "it had begun"
    deadline = time.monotonic() + 10
    while list(uploads.glob(".incoming-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(uploads.glob(".incoming-*"))
    assert not server.services.registry.store.numbers("face")


def test_two_uploads_at_once_are_two_versions_and_equal_ones_are_one(
    server: RunningServer, tiny_adapters: dict[str, Path]
) -> None:
    replies: list[httpx.Response] = []
    sent = [tiny_adapters[name] for name in ("r2", "r2", "r4")]
    threads = [threading.Thread(target=lambda path=path: replies.append(upload(server, path))) for path in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.status_code for reply in replies} <= {200, 201}
    numbers = server.services.registry.store.numbers("face")
    made = [reply.json() for reply in replies if reply.json()["new"]]
    assert sorted(reply["version"] for reply in made) == numbers and len(numbers) in (2, 3)


def test_publishing_by_file_id_and_by_path(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    files = {"file": ("../huanhuan.zip", zipped(tiny_adapters["r4"]))}
    stored = send(server, "POST", "/v1/files", data={"purpose": "adapter"}, files=files).json()
    assert stored["filename"] == "huanhuan.zip" and stored["bytes"] == len(files["file"][1])
    body = {"file_id": stored["id"], "name": "face"}
    assert send(server, "POST", "/v1/adapters", json=body).json()["id"] == "face@1"
    by_path = send(server, "POST", "/v1/adapters", json={"path": str(tiny_adapters["r8"]), "name": "face"})
    assert by_path.json()["id"] == "face@2"
    refused: list[tuple[dict[str, object], int, str]] = [
        ({"path": "/etc", "name": "face"}, 403, "path"),
        ({"path": f"{tiny_adapters['r2']}/../../..", "name": "face"}, 403, "path"),
        ({"path": "a\0b", "name": "face"}, 404, "path"),
        ({"file_id": "../../etc", "name": "face"}, 404, "file_id"),
        ({"file_id": stored["id"], "path": "/x", "name": "face"}, 400, "file_id"),
        ({"name": "face"}, 400, "path"),
        ({"file_id": stored["id"]}, 400, "name"),
        ({"file_id": stored["id"], "name": "x", "colour": 1}, 400, "colour"),
    ]
    for sent, status, word in refused:
        reply = send(server, "POST", "/v1/adapters", json=sent)
        assert reply.status_code == status and word in json.dumps(reply.json()["error"]), reply.text


def test_files_come_back_as_they_were_and_go(server: RunningServer) -> None:
    client = server.client()
    content = b'{"messages": []}\n'
    first = client.files.create(file=("data.jsonl", content), purpose="fine-tune")
    second = client.files.create(file=("more.jsonl", content), purpose="fine-tune")
    assert client.files.retrieve(first.id) == first and first.bytes == len(content)
    assert client.files.content(first.id).read() == content
    assert {file.id for file in client.files.list(purpose="fine-tune")} == {first.id, second.id}
    assert len(list(client.files.list(limit=1))) >= 2, "pages are followed to the end"
    assert client.files.delete(first.id).deleted and client.files.delete(second.id).deleted
    for path in (first.id, f"{first.id}/content", "file-..%2f..", "..%2f..%2fetc%2fpasswd"):
        assert send(server, "GET", f"/v1/files/{path}").status_code == 404
    assert send(server, "DELETE", f"/v1/files/{first.id}").status_code == 404
    wrong = send(server, "POST", "/v1/files", data={"purpose": "vision"}, files={"file": ("a", b"x")})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "purpose"
    extra = send(server, "POST", "/v1/files", data={"purpose": "adapter", "ttl": "1"}, files={"file": ("a", b"x")})
    assert extra.status_code == 400 and extra.json()["error"]["param"] == "ttl"


def test_an_alias_shares_its_users_and_keeps_them(server: RunningServer, tiny_adapters: dict[str, Path]) -> None:
    upload(server, tiny_adapters["r2"])
    upload(server, tiny_adapters["r4"])
    targets = [{"model": "face@1", "weight": 9}, {"model": "tiny", "weight": 1}]
    put = send(server, "PUT", "/v1/aliases/persona", json={"targets": targets})
    assert put.status_code == 200 and put.json()["targets"][0]["share"] == 0.9
    alias = server.services.chat.aliases.require("persona")
    user = {alias.choose(name): name for name in map(str, range(50))}
    for model, answered in (("face@1", "face@1"), ("tiny", "tiny")):
        reply = ask(server, "persona", user=user[model])
        assert reply.headers["x-bianlian-adapter"] == answered and reply.json()["model"] == "persona"
    cards = {card["id"]: card for card in send(server, "GET", "/v1/models").json()["data"]}
    assert cards["persona"]["root"] == "face@1" and cards["persona"]["targets"] == targets
    assert send(server, "GET", "/v1/models/persona").json()["root"] == "face@1"
    assert send(server, "DELETE", "/v1/adapters/face@1").status_code == 409
    assert send(server, "DELETE", "/v1/adapters/face@2").status_code == 200
    unload = send(server, "POST", "/v1/unload_lora_adapter", json={"lora_name": "face"})
    assert unload.status_code == 409 and "alias 'persona' points at face@1" in unload.text
    forced = send(server, "POST", "/v1/unload_lora_adapter", json={"lora_name": "face", "force": True})
    assert forced.status_code == 200 and ask(server, "persona", user=user["face@1"]).status_code == 404
    assert send(server, "DELETE", "/v1/adapters/face@1").status_code == 409  # what the alias means is still there
    assert upload(server, tiny_adapters["r8"], "persona").status_code == 409
    with pytest.raises(Conflict, match="is an alias"):
        server.services.registry.store.publish(tiny_adapters["r8"], "persona")
    assert send(server, "DELETE", "/v1/aliases/persona").json()["deleted"] is True
    assert ask(server, "persona").status_code == 404


@pytest.mark.parametrize(
    ("name", "targets", "status", "param"),
    [
        ("face", [{"model": "tiny"}], 409, "name"),
        ("tiny", [{"model": "face"}], 409, "name"),
        ("fixed", [{"model": "face"}], 409, "name"),
        ("..%2fup", [{"model": "face"}], 404, None),
        ("a%00b", [{"model": "face"}], 400, "name"),
        ("new", [{"model": "nobody"}], 404, "targets.0.model"),
        ("new", [{"model": "face"}, {"model": "other"}], 400, "targets.1.model"),
        ("new", [{"model": "new"}], 400, "targets.0.model"),
        ("new", [{"model": "face"}, {"model": "face"}], 400, "targets"),
        ("new", [{"model": "face", "weight": 0}], 400, "targets.0.weight"),
        ("new", [{"model": "face", "weight": -1}], 400, "targets.0.weight"),
        ("new", [], 400, "targets"),
    ],
)
def test_aliases_that_collide_or_point_nowhere_are_refused(
    server: RunningServer,
    tiny_adapters: dict[str, Path],
    name: str,
    targets: list[dict[str, object]],
    status: int,
    param: str | None,
) -> None:
    upload(server, tiny_adapters["r2"])
    assert send(server, "PUT", "/v1/aliases/other", json={"targets": [{"model": "face"}]}).status_code == 200
    reply = send(server, "PUT", f"/v1/aliases/{name}", json={"targets": targets})
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text


def test_only_the_admin_changes_anything(tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> None:
    options = {"api_key": ["user-key"], "admin_key": "admin-key"}
    with running_server(settings_for(tiny_base, tmp_path, **options)) as running:
        user, admin = ({"Authorization": f"Bearer {key}"} for key in ("user-key", "admin-key"))
        made = send(
            running, "POST", "/v1/adapters", data={"name": "face"}, files=loose(tiny_adapters["r2"]), headers=admin
        )
        assert made.status_code == 201
        put = {"targets": [{"model": "face"}]}
        changes = [
            ("POST", "/v1/adapters", {"json": {"name": "x", "path": "/x"}}),
            ("POST", "/v1/adapters", {"data": {"name": "x"}, "files": loose(tiny_adapters["r4"])}),
            *(("POST", f"/v1/adapters/face/{action}", {}) for action in ("rollback", "pin", "unpin", "warm")),
            ("DELETE", "/v1/adapters/face", {}),
            ("PUT", "/v1/aliases/new", {"json": put}),
            ("DELETE", "/v1/aliases/new", {}),
            ("GET", "/v1/adapters", {}),
            ("GET", "/v1/aliases", {}),
            ("GET", "/v1/files", {}),
            ("POST", "/v1/files", {"data": {"purpose": "adapter"}, "files": {"file": ("x", b"x")}}),
        ]
        for method, path, body in changes:
            assert send(running, method, path, **body).status_code == 401, path
            assert send(running, method, path, headers=user, **body).status_code == 403, path
        assert [card["id"] for card in send(running, "GET", "/v1/adapters", headers=admin).json()["data"]] == ["face"]
        # Without a `user` the key decides.
        share = {"targets": [{"model": "face"}, {"model": "tiny"}]}
        assert send(running, "PUT", "/v1/aliases/new", json=share, headers=admin).status_code == 200
        body = {"model": "new", "messages": QUESTION, "max_tokens": 1}
        answered = {
            send(running, "POST", "/v1/chat/completions", json=body, headers=user).headers["x-bianlian-adapter"]
            for _ in range(4)
        }
        assert len(answered) == 1


def test_a_watched_directory_publishes_what_is_whole_and_settled(
    server: RunningServer, tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    watcher = DirectoryWatcher([tmp_path, tmp_path / "later"])
    half = tmp_path / "half"
    half.mkdir()
    (half / FILES[1]).write_bytes((tiny_adapters["r2"] / FILES[1]).read_bytes()[:500])
    (tmp_path / ".hidden").mkdir()
    face = tiny.copy(tiny_adapters["r2"], tmp_path / "face")
    assert watcher.poll(0) == [] == watcher.poll(SETTLE_S / 2)
    assert watcher.poll(SETTLE_S) == [face]
    assert watcher.poll(SETTLE_S * 2) == [], "once"
    (half / FILES[0]).write_bytes((tiny_adapters["r2"] / FILES[0]).read_bytes())
    assert watcher.poll(10) == [], "it may still be written to"
    (half / FILES[1]).write_bytes((tiny_adapters["r2"] / FILES[1]).read_bytes()[:900])
    assert watcher.poll(10 + SETTLE_S) == [], "it was"
    assert watcher.poll(10 + 2 * SETTLE_S) == [half]
    assert watcher.poll(99) == [], "what is broken is not tried again"
    (half / FILES[1]).write_bytes((tiny_adapters["r4"] / FILES[1]).read_bytes())
    assert watcher.poll(100) == [] and watcher.poll(100 + SETTLE_S) == [half], "until it changes"
    for path in (*half.iterdir(), half):
        path.unlink() if path.is_file() else path.rmdir()
    assert watcher.poll(200) == []


@pytest.mark.parametrize(("there", "missing"), [FILES, FILES[::-1]])
def test_a_watched_directory_that_stays_half_an_adapter_is_said_once(
    tiny_adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str, missing: str
) -> None:
    watcher = DirectoryWatcher([tmp_path])
    half = tiny.copy(tiny_adapters["r2"], tmp_path / "half")
    (half / missing).unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    for now in (0.0, HALF_S / 2):
        assert watcher.poll(now) == [] and not said(), "it may still be coming"
    for now in (HALF_S, 2 * HALF_S, 3 * HALF_S):
        assert watcher.poll(now) == []
    (message,) = said()
    assert str(half) in message and f"no {missing}" in message
    (half / missing).write_bytes((tiny_adapters["r2"] / missing).read_bytes())
    assert watcher.poll(4 * HALF_S) == [] and watcher.poll(4 * HALF_S + SETTLE_S) == [half] and len(said()) == 1


def test_a_server_publishes_from_the_directory_it_watches(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    broken_one = tiny.copy(tiny_adapters["r2"], watched / "broken")
    (broken_one / FILES[0]).write_text("{")
    link = tiny.copy(tiny_adapters["r2"], watched / "linked")
    (link / FILES[1]).unlink()
    (link / FILES[1]).symlink_to(tiny_adapters["r2"] / FILES[1])
    tiny.copy(tiny_adapters["r4"], watched / "face")
    with running_server(settings_for(tiny_base, tmp_path / "home", watch=[watched])) as running:
        store = running.services.registry.store
        deadline = time.monotonic() + 30
        while store.names() != ["face"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ask(running, "face").headers["x-bianlian-adapter"] == "face@1"
        running.assert_nothing_held()
    assert store.names() == ["face"]
    refused = [record.getMessage() for record in caplog.records if "is not published" in record.getMessage()]
    assert sorted(message.split()[0].rpartition("/")[2] for message in refused) == ["broken", "linked"]


def test_a_version_that_was_rolled_back_is_not_brought_back_by_the_watcher(
    server: RunningServer, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    import asyncio

    from serving.lifecycle import AdapterLifecycle

    face = tiny.copy(tiny_adapters["r4"], tmp_path / "face")
    upload(server, tiny_adapters["r2"])
    upload(server, tiny_adapters["r4"])
    send(server, "POST", "/v1/adapters/face/rollback")
    asyncio.run(publish_found(AdapterLifecycle(server.services.chat), face, tmp_path))
    assert send(server, "GET", "/v1/adapters/face").json()["current"] == 1
