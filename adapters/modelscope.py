"""ModelScope over its plain HTTP API: one endpoint lists a repository's files, one sends a file.

Its client library would bring more code than all of `adapters/`; these two requests are all that is needed. Files are
downloaded into `part` files that the next attempt goes on with, checked against the listed sha256, and renamed."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import httpx

from adapters.errors import Invalid, NotFound, Unavailable

_TIMEOUT = httpx.Timeout(10, read=30)  # seconds
_ATTEMPTS = 5  # in a row that bring not a single byte
_PAGE = 200  # files of a data set in one listing
_RECORD = ".downloaded.json"


@dataclass(frozen=True)
class HubFile:
    """A file in a repository. `sha256` is empty where the listing has none."""

    path: str
    size: int
    sha256: str


def endpoint() -> str:
    """`MODELSCOPE_ENDPOINT`, or the older `MODELSCOPE_DOMAIN`, which has no scheme; else modelscope.cn."""
    named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    return (named if "://" in named else f"https://{named}").rstrip("/")


def list_files(repository: str, kind: str, revision: str | None) -> list[HubFile]:
    """All files of the repository. Raises httpx's errors, and NotFound when the hub says there is none."""
    with _client() as client:
        return _list(client, repository, kind, revision or "master")


def download(
    repository: str, kind: str, revision: str | None, allow: Sequence[str], ignore: Sequence[str] = ()
) -> Path:
    """The directory with the repository's files that match `allow` and not `ignore`; see `hub.download`."""
    from filelock import FileLock

    revision = revision or "master"
    directory = _cache() / f"{kind}s" / repository.replace("/", "--") / revision.replace("/", "--")
    directory.mkdir(parents=True, exist_ok=True)
    asked = " ".join([*allow, "but", *ignore])
    with FileLock(directory / ".lock"), _client() as client:
        record = _read_record(directory)
        try:
            listed = _list(client, repository, kind, revision)
        except httpx.TransportError:
            if asked not in record.get("complete", []):
                raise
            return directory  # perhaps older than what the hub has now, but whole
        wanted = [file for file in listed if _matches(file.path, allow, ignore)]
        _fetch(client, f"{_url(repository, kind)}/repo", revision, wanted, directory, record)
        record["complete"] = sorted({*record.get("complete", []), asked})
        _write_record(directory, record)
    return directory


def _fetch(
    client: httpx.Client,
    url: str,
    revision: str,
    wanted: Sequence[HubFile],
    directory: Path,
    record: dict[str, Any],
) -> None:
    from tqdm.auto import tqdm

    missing = [file for file in wanted if not _is_here(file, directory, record)]
    if missing:
        record.pop("complete", None)
    total = sum(file.size for file in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc=url.split("/")[-2], disable=not missing or None) as bar:
        for file in missing:
            target = directory / _inside(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            _fill(client, url, {"Revision": revision, "FilePath": file.path}, part, file, bar)
            part.replace(target)
            record[file.path] = file.sha256
            _write_record(directory, record)


def _fill(client: httpx.Client, url: str, query: Mapping[str, str], part: Path, file: HubFile, bar: Any) -> None:
    """Download into `part`, going on where it ends, until it has the file's size; then compare its sha256."""
    attempts = _ATTEMPTS
    bar.update(part.stat().st_size if part.is_file() else 0)
    while (size := part.stat().st_size if part.is_file() else 0) < file.size or not part.is_file():
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
        try:
            with client.stream("GET", url, params=query, headers=headers) as answer:
                answer.raise_for_status()
                goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
                if size and not goes_on:
                    bar.update(-size)
                with part.open("ab" if goes_on else "wb") as out:
                    for chunk in answer.iter_bytes():
                        out.write(chunk)
                        bar.update(len(chunk))
        except httpx.TransportError:
            attempts = _ATTEMPTS if part.is_file() and part.stat().st_size > size else attempts - 1
            if not attempts:
                raise
            continue
        if part.stat().st_size == size and file.size:  # the whole answer, and nothing in it
            break
    with part.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if part.stat().st_size != file.size or (file.sha256 and digest != file.sha256):
        part.unlink()
        raise Unavailable(f"{file.path} arrived damaged from {endpoint()}; try again")


def _list(client: httpx.Client, repository: str, kind: str, revision: str) -> list[HubFile]:
    url, query = f"{_url(repository, kind)}/repo", {"Revision": revision, "Recursive": "True"}
    if kind == "model":
        entries = _entries(client.get(f"{url}/files", params=query), repository)
    else:
        entries, page = [], 1
        while len(entries) == (page - 1) * _PAGE:
            numbers = {"PageNumber": str(page), "PageSize": str(_PAGE)}
            entries += _entries(client.get(f"{url}/tree", params=query | numbers), repository)
            page += 1
    return [
        HubFile(str(entry["Path"]), int(entry.get("Size") or 0), str(entry.get("Sha256") or ""))
        for entry in entries
        if entry.get("Type") != "tree"
    ]


def _entries(answer: httpx.Response, repository: str) -> list[dict[str, Any]]:
    answer.raise_for_status()
    try:
        body = answer.json()
        data = body["Data"]
        entries = data["Files"] if isinstance(data, dict) else data
    except (ValueError, KeyError, TypeError):
        raise NotFound(f"{endpoint()} lists no files of '{repository}'; mind the spelling") from None
    return list(entries or [])


def _client() -> httpx.Client:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    cookies = httpx.Cookies()
    if token:  # the older endpoints read the cookie
        cookies.set("m_session_id", token, domain=urlsplit(endpoint()).hostname or "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, cookies=cookies, headers=headers)


def _url(repository: str, kind: str) -> str:
    return f"{endpoint()}/api/v1/{kind}s/{repository}"


def _cache() -> Path:
    root = os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"
    return Path(root).expanduser() / "bianlian"  # apart from what ModelScope's own client keeps


def _inside(path: str) -> PurePosixPath:
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts or re.search(r"[\\:\0]", path):
        raise Invalid(f"{endpoint()} lists a file '{path}' outside its repository; it is not downloaded")
    return inside


def _matches(path: str, allow: Sequence[str], ignore: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in allow) and not any(fnmatch(path, pattern) for pattern in ignore)


def _is_here(file: HubFile, directory: Path, record: Mapping[str, Any]) -> bool:
    path = directory / _inside(file.path)
    return record.get(file.path) == file.sha256 and path.is_file() and path.stat().st_size == file.size


def _read_record(directory: Path) -> dict[str, Any]:
    """sha256 by path of what was downloaded whole, and under `complete` the requests of which everything is here."""
    try:
        return dict(json.loads((directory / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}  # nothing yet, or a record cut off: the files are downloaded again


def _write_record(directory: Path, record: Mapping[str, Any]) -> None:
    new = directory / f"{_RECORD}.new"
    new.write_text(json.dumps(record), encoding="utf-8")
    new.replace(directory / _RECORD)
