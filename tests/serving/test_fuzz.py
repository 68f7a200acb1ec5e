"""Random input for everything that reads input: never a 500, a hang, a crash, or a file outside the roots.

`--fuzz-count 20000` for a full run; a failure names the seed and the input's number, which make it again."""

import asyncio
import io
import json
import random
import shutil
import socket
import stat
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny
from tests.serving.running import RunningServer, running_server, settings_for

HANG_S = 60
AT_ONCE = 16
MESSAGES = [{"role": "user", "content": "你好"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": MESSAGES,
        "max_tokens": 2,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "n": 2,
        "stop": ["。"],
        "stream": False,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "lora": [{"name": "r8", "scale": 0.5}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "user": "me",
        "priority": 1,
    },
    "/v1/completions": {
        "model": "r8",
        "prompt": ["你好", "再见"],
        "max_tokens": 2,
        "echo": True,
        "logprobs": 1,
        "n": 2,
        "best_of": 2,
        "guided_regex": "[a-z]+",
        "stop_token_ids": [5],
        "min_tokens": 1,
        "ignore_eos": True,
    },
    "/v1/compare": {
        "messages": MESSAGES,
        "max_tokens": 2,
        "lanes": [{"model": "tiny", "system": "简短"}, {"model": "r8", "scale": 0.5}],
        "structured_outputs": {"choice": ["是", "否"]},
    },
    "/v1/load_lora_adapter": {"lora_name": "fuzzed", "lora_path": "uploads/none", "load_inplace": True},
    "/v1/unload_lora_adapter": {"lora_name": "fuzzed", "force": True, "lora_int_id": 1},
}
ODD = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, 1e-320, 0.5, "", "x", "\0", "\ud800", "𝄞" * 50),
    *("base", "tiny", "r8@1", "../../etc", "/etc/passwd", "~root", "a" * 5000, "[" * 200, "(a+)+$", "{}", "\r\nx: y"),
    *([], {}, [[]], [None], [{}], {"": None}, {"a": {"b": [1, {"c": 2}]}}, [0] * 300, ["x"] * 300, {"$ref": "#"}),
]
TYPES = [
    *("application/json", "text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded", "\x7f"),
    "application/json; charset=utf-16",
]


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("fuzzed") / "home"
    settings = settings_for(
        tiny_base, home, adapter=[f"r8={tiny_adapters['r8']}"], max_model_len=64, max_upload=8 / 1024
    )
    with running_server(settings) as running:
        yield running
        running.assert_nothing_held()


@pytest.fixture(scope="module")
def dice(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.config.getoption("--fuzz-seed"))


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fuzz-count"))


def changed(value: Any, dice: random.Random) -> Any:
    """`value` with something odd in one place, at any depth."""
    if dice.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return dice.choice(ODD)
    if isinstance(value, list):
        place = dice.randrange(len(value))
        return [*value[:place], changed(value[place], dice), *value[place + 1 :]]
    name = dice.choice(list(value))
    renamed = dice.choice([name] * 8 + ["", name.upper(), "a.b", "__proto__", "x" * 300])
    return {key: item for key, item in value.items() if key != name} | {renamed: changed(value[name], dice)}


def some_body(path: str, dice: random.Random) -> bytes:
    """From nearly right to bytes that are not JSON."""
    body: Any = dict(BODIES[path])
    for name in dice.sample(list(body), dice.randrange(len(body))):
        if name not in ("model", "messages", "prompt", "lanes", "max_tokens", "lora_name", "lora_path"):
            del body[name]
    for _ in range(dice.choice([0, 1, 1, 1, 2, 5])):
        body = changed(body, dice)
    content = json.dumps(body).encode()
    match dice.randrange(12):
        case 0:
            return content[: dice.randrange(len(content))]
        case 1:
            place = dice.randrange(len(content))
            return content[:place] + dice.randbytes(dice.randrange(1, 9)) + content[place:]
        case 2:
            return dice.choice([b"", b"null", b"[" * 100_000, b"NaN", dice.randbytes(99), content + content])
    return content


def test_random_bodies_get_an_answer_that_is_no_500(server: RunningServer, dice: random.Random, count: int) -> None:
    inputs = []
    for number in range(count):
        path = dice.choice(list(BODIES))
        kind = dice.choice(TYPES) if dice.random() < 0.1 else "application/json"
        inputs.append((number, path, kind, some_body(path, dice)))
    statuses: Counter[int] = Counter()

    async def send(http: httpx.AsyncClient, number: int, path: str, kind: str, content: bytes) -> None:
        try:
            reply = await http.post(path, content=content, headers={"content-type": kind.encode("latin-1")})
        except httpx.TransportError as error:
            pytest.fail(f"input {number}: {path} {kind!r} {content[:600]!r} → {error!r}")
        statuses[reply.status_code] += 1
        described = f"input {number}: {path} {kind!r} {content[:600]!r} → {reply.status_code} {reply.text[:300]}"
        assert reply.status_code < 500, described
        if reply.status_code != 200:
            assert reply.json()["error"]["message"], described

    async def send_all() -> None:
        waiting = iter(inputs)
        # A connection each: one that is kept may be closed by the server just as the next request is sent on it.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=server.url, timeout=HANG_S, limits=limits) as http:

            async def client() -> None:
                for one in waiting:
                    await send(http, *one)

            async with asyncio.TaskGroup() as clients:
                for _ in range(AT_ONCE):
                    clients.create_task(client())

    asyncio.run(send_all())
    print(f"statuses of {count} bodies: {dict(statuses)}")
    assert statuses[200] > count // 50 and statuses[400] > count // 5  # deep enough, and odd enough
    server.assert_nothing_held()
    assert server.services.engine.engine.failed_steps == 0


def test_broken_http_neither_hangs_nor_harms(server: RunningServer, dice: random.Random, count: int) -> None:
    """Truncated chunked bodies, lengths that lie, half requests: the connection ends, the next caller is answered."""
    port = int(server.url.rpartition(":")[2])
    for _ in range(count // 10):
        path = dice.choice(list(BODIES))
        content = some_body(path, dice)[:5000]
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        cut = content[: dice.randrange(len(content) + 1)]
        sent = dice.choice(
            [
                head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s" % (len(content) + 1, cut),
                head + b"Transfer-Encoding: chunked\r\n\r\n" + dice.choice([b"zz", b"-1", b"f" * 40]) + b"\r\n" + cut,
                head + b"Content-Length: %d\r\n\r\n%s" % (len(content) + 9, cut),
                head + b"Content-Length: -5\r\n\r\n" + cut,
                head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + cut,
                head[: dice.randrange(len(head))],
                dice.randbytes(200),
            ]
        )
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            reply = b""
            try:
                while part := client.recv(65536):
                    reply += part
            except ConnectionResetError:
                pass  # it had not read all of what was sent
        assert b" 500 " not in reply.split(b"\r\n", 1)[0], (sent, reply)
    assert httpx.get(f"{server.url}/ready").status_code == 200
    server.assert_nothing_held()


def some_weights(good: bytes, dice: random.Random) -> bytes:
    """A safetensors file with something wrong in its header, its lengths or its data; sometimes nothing."""
    (length,) = struct.unpack("<Q", good[:8])
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    match dice.randrange(8):
        case 0:
            return good[: dice.randrange(len(good))]
        case 1:
            return struct.pack("<Q", dice.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(good)])) + good[8:]
        case 2:
            place = dice.randrange(8, 8 + length)
            return good[:place] + dice.randbytes(dice.randrange(1, 5)) + good[place + 1 :]
        case 3:
            return dice.randbytes(dice.randrange(200))
    name = dice.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    for _ in range(dice.randrange(1, 4)):
        field = dice.choice(["dtype", "shape", "data_offsets", "name"])
        if field == "name":
            header.pop(name, None)
            name = dice.choice(["", "x", name + ".x", "base_model.model.", name.replace("lora_A", "lora_B"), "a" * 999])
        elif field == "dtype":
            entry["dtype"] = dice.choice(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", "", None, 3])
        else:
            numbers = [0, 1, -1, 2, 8, 64, 2**31, 2**63, 2**64, 0.5, None, len(data)]
            entry[field] = dice.choice([[dice.choice(numbers) for _ in range(dice.randrange(5))], None, "x"])
        header[name] = entry
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data


def some_config(good: dict[str, Any], dice: random.Random) -> bytes:
    body: Any = good
    for _ in range(dice.choice([0, 0, 1, 2])):
        body = changed(body, dice)
    content = json.dumps(body).encode()
    return content if dice.random() < 0.9 else content[: dice.randrange(len(content))]


def test_random_adapters_are_refused_or_served_and_write_nothing(
    server: RunningServer, tiny_adapters: dict[str, Path], dice: random.Random, count: int
) -> None:
    home = server.services.settings.root
    uploads = home / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    weights = (tiny_adapters["r2"] / "adapter_model.safetensors").read_bytes()
    config = json.loads((tiny_adapters["r2"] / "adapter_config.json").read_text())
    outside = sorted(home.parent.rglob("*"))
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=server.url, timeout=HANG_S) as http:
        for number in range(count // 3):
            directory = tiny.copy(tiny_adapters["r2"], uploads / "one")
            broken, odd = some_weights(weights, dice), some_config(config, dice)
            (directory / "adapter_model.safetensors").write_bytes(broken)
            (directory / "adapter_config.json").write_bytes(odd)
            body = {"lora_name": "one", "lora_path": str(directory), "load_inplace": True}
            reply = http.post("/v1/load_lora_adapter", json=body)
            statuses[reply.status_code] += 1
            assert reply.status_code in (200, 400, 404), (number, reply.text[:300], broken[:300], odd)
            if reply.status_code == 200:
                assert http.post("/v1/unload_lora_adapter", json={"lora_name": "one"}).status_code == 200
            shutil.rmtree(directory)
    print(f"statuses of {count // 3} adapters: {dict(statuses)}")
    assert sorted(home.parent.rglob("*")) == outside
    assert statuses[400] > count // 6


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BOMB = bytes(24 << 20)  # three times what may be uploaded, and nearly nothing when packed
NAMES = [
    *("README.md", "face/notes.txt", "__MACOSX/._x", "a" * 300, "ü\u202e.txt", "", ".", "/", "con", "x\0y", "a\nb"),
    *("../escaped", "../../escaped", "face/../../escaped", "..\\escaped", "C:\\escaped", "//escaped", "./../escaped"),
    *("adapter_model.bin", "training_args.bin", "inner.zip", CONFIG, WEIGHTS, f"face/{CONFIG}", f"./{WEIGHTS}"),
]
SUFFIXES = [".zip", ".tar", ".tar.gz", ".tgz", ".safetensors", ".json", ".bin", ".7z", "", "/../x.zip", ".ZIP"]
Entry = tuple[str, bytes]


def some_entries(good: dict[str, bytes], outside: Path, dice: random.Random) -> list[Entry]:
    """An adapter's files, mostly, and what does not belong beside them."""
    folder = dice.choice(["", "", "face/", "./", "a/b/"])
    entries = [(folder + name, content) for name, content in good.items()]
    for _ in range(dice.choice([0, 0, 1, 1, 3])):
        name = dice.choice([*NAMES, str(outside / "escaped")])
        entries.append((name, dice.choice([b"", b"x" * 99, good[CONFIG], BOMB])))
    if dice.random() < 0.05:
        entries += [(f"{number}.txt", b"") for number in range(1100)]
    dice.shuffle(entries)
    return entries


def some_zip(entries: list[Entry], dice: random.Random) -> bytes:
    file = io.BytesIO()
    packing = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", packing) as opened:
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            kind = dice.choice([0] * 20 + [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
            entry.external_attr, entry.compress_type = (kind | 0o644) << 16, packing
            opened.writestr(entry, b"../../escaped" if kind == stat.S_IFLNK else content)
    return file.getvalue()


def some_tar(entries: list[Entry], dice: random.Random) -> bytes:
    file = io.BytesIO()
    form = dice.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    kinds = [tarfile.REGTYPE] * 20 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
    kinds += [tarfile.CHRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE]
    with tarfile.open(fileobj=file, mode=dice.choice(["w", "w:gz"]), format=form) as opened:  # type: ignore[call-overload]
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.type, member.size = dice.choice(kinds), len(content)
            member.linkname = dice.choice(["../../escaped", "/etc/passwd", WEIGHTS])
            try:
                opened.addfile(member, io.BytesIO(content))
            except ValueError:  # a name that this form of tar cannot have
                member.name = "x"
                opened.addfile(member, io.BytesIO(content))
    return file.getvalue()


def damaged(content: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(content))
    match dice.randrange(6):
        case 0:
            return content[:place]
        case 1:  # near the end, where a zip has its list of files
            place = max(0, len(content) - dice.randrange(1, 300))
            return content[:place] + dice.randbytes(dice.randrange(1, 5)) + content[place + 1 :]
        case 2:
            return content[:place] + dice.randbytes(dice.randrange(1, 5)) + content[place + 1 :]
        case 3:
            number = struct.pack("<I", dice.choice([0, 1, 2**31, 2**32 - 1, len(content)]))
            return content[:place] + number + content[place + 4 :]
        case 4:
            return dice.choice([b"", b"junk", content]) + content + dice.choice([b"junk", content])
    return dice.choice([b"PK", b"PK\x05\x06" + bytes(18), b"\x1f\x8b", bytes(512), dice.randbytes(600)])


def test_random_archives_are_refused_or_published_and_write_nothing_else(
    server: RunningServer, tiny_adapters: dict[str, Path], dice: random.Random, count: int
) -> None:
    home = server.services.settings.root
    good = {name: (tiny_adapters["r2"] / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    statuses: Counter[int] = Counter()
    server.services.settings.uploads.mkdir(parents=True, exist_ok=True)

    def files() -> list[Path]:
        """All but the store's own: what is published there is checked by its answer."""
        return sorted(path for path in home.parent.rglob("*") if not path.is_relative_to(home / "store"))

    with httpx.Client(base_url=server.url, timeout=HANG_S) as http:
        outside = files()
        for number in range(count // 6):
            sent = dict(good)
            if dice.random() < 0.2:
                sent = {
                    CONFIG: some_config(json.loads(good[CONFIG]), dice),
                    WEIGHTS: some_weights(good[WEIGHTS], dice),
                }
            entries = some_entries(sent, home.parent, dice)
            content = dice.choice([some_zip, some_tar])(entries, dice)
            if dice.random() < 0.4:
                content = damaged(content, dice)
            suffix = dice.choice([*SUFFIXES[:4] * 3, *SUFFIXES])
            form = {"file": (f"packed{suffix}", content)}
            reply = http.post("/v1/adapters", data={"name": "packed"}, files=form)
            statuses[reply.status_code] += 1
            described = (number, suffix, [name for name, _ in entries][:9], content[:200], reply.text[:300])
            assert reply.status_code in (200, 201, 400, 413), described
            if reply.status_code < 300:
                listed = http.get("/v1/adapters/packed").json()
                assert len(listed["versions"]) == 1, described
                assert http.delete("/v1/adapters/packed").status_code == 200
            else:
                assert reply.json()["error"]["message"], described
            assert files() == outside, described
    print(f"statuses of {count // 6} archives: {dict(statuses)}")
    assert statuses[201] > count // 60 and statuses[400] > count // 20
