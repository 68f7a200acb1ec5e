"""A mirror of both hubs on this machine: the endpoints that huggingface_hub and `adapters/modelscope.py` call."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Mirror:
    """What it has, what goes wrong, and what it was asked."""

    url: str = ""
    models: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    datasets: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)  # path: bytes after which the connection breaks, once
    cut_always: bool = False
    redirect: dict[str, str] = field(default_factory=dict)  # path: where its bytes are
    tokens: list[str] = field(default_factory=list)  # seen in Authorization
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path of a file, Range) of each GET

    def repositories(self, kind: str) -> dict[str, Mapping[str, bytes]]:
        return self.models if kind == "models" else self.datasets


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hubs are at `url` from now on."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", url)


@contextmanager
def running_mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Nothing: pytest shows what matters."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if token := self.headers.get("Authorization"):
                mirror.tokens.append(token)
            if parts[:2] == ["api", "v1"]:
                self.modelscope(parts[2], "/".join(parts[3:5]), parts[5:], query)
            elif parts[0] == "api":
                self.hugging_face(parts[1], "/".join(parts[2:4]), parts[4:])
            else:
                kind = "datasets" if parts[0] == "datasets" else "models"
                rest = parts[1:] if kind == "datasets" else parts
                assert rest[2] == "resolve"
                self.file(mirror.repositories(kind)["/".join(rest[:2])], "/".join(rest[4:]))

        def hugging_face(self, kind: str, name: str, rest: list[str]) -> None:
            if name in mirror.gated:
                return self.json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            files = mirror.repositories(kind).get(name)
            if files is None:
                return self.json(401, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            if rest and rest[-1] not in ("main", "v1", COMMIT):
                return self.json(404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"})
            if rest[:1] == ["tree"]:
                return self.json(200, [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ])  # fmt: skip
            self.json(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

        def modelscope(self, kind: str, name: str, rest: list[str], query: dict[str, str]) -> None:
            if name in mirror.gated:
                return self.json(403, {"Code": 10010205002, "Message": "no permission"})
            files = mirror.repositories(kind).get(name)
            if files is None:
                return self.json(404, {"Code": 10010205001, "Message": "not found"})
            if rest == ["repo"] and query["FilePath"] in mirror.redirect:
                return self.json(302, {}, {"Location": mirror.redirect[query["FilePath"]]})
            if rest == ["repo"]:
                return self.file(files, query["FilePath"])
            assert rest == ["repo", "files" if kind == "models" else "tree"]
            listed = [{"Path": "data", "Type": "tree", "Size": 0}] + [
                {"Path": p, "Type": "blob", "Size": len(c), "Sha256": hashlib.sha256(c).hexdigest()}
                for p, c in files.items()
            ]
            size = int(query.get("PageSize", len(listed)))
            start = (int(query.get("PageNumber", 1)) - 1) * size
            self.json(200, {"Code": 200, "Data": {"Files": listed[start : start + size]}})

        def file(self, files: Mapping[str, bytes], path: str) -> None:
            content = files[path]
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            mirror.asked.append((path, wanted))
            cut = mirror.cut.get(path) if mirror.cut_always else mirror.cut.pop(path, None)
            self.wfile.write(content[start : len(content) if cut is None else start + cut])
            if cut is not None:
                self.close_connection = True

        def json(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
