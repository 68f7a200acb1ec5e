"""Every endpoint wants the key that the table in docs/api.md says, and every endpoint is in that table."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.running import RunningServer, running_server, settings_for

NEEDS = ("no key", "a user key", "an admin key")
DOCUMENTED = re.findall(
    rf"^\| ({'|'.join(NEEDS)}) \| (.*) \|$", (Path(__file__).parents[2] / "docs" / "api.md").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys = {"api_key": ["user-key"], "admin_key": "admin-key"}
    with running_server(settings_for(tiny_base, tmp_path_factory.mktemp("home"), **keys)) as running:
        yield running


def needed(path: str) -> str:
    """What the table says of a path; the longest entry that covers it counts."""
    entries = [(entry, needs) for needs, listed in DOCUMENTED for entry in re.findall(r"`([^`]+)`", listed)]
    covering = [
        (len(entry), needs)
        for entry, needs in entries
        if path == entry or (entry.endswith("…") and re.match(rf"{re.escape(entry[:-1])}(/|$)", path))
    ]
    assert covering, f"{path} is not in the table of docs/api.md"
    return max(covering)[1]


def refusal(server: RunningServer, method: str, path: str, key: str | None) -> tuple[int, str] | None:
    """Status and code of a request that its key kept out; None when it came further."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    reply = httpx.request(method, server.url + path, headers=headers, timeout=30)
    return (reply.status_code, reply.json()["error"]["code"]) if reply.status_code in (401, 403) else None


def test_every_endpoint_wants_the_key_that_is_documented(server: RunningServer) -> None:
    assert [needs for needs, _ in DOCUMENTED] == list(NEEDS)
    paths = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": "Bearer user-key"}).json()["paths"]
    asked = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(asked) >= 39
    for method, path in [*asked, ("GET", "/openapi.json")]:
        needs, sent = needed(path), re.sub(r"{[^}]*}", "x", path)
        found = [refusal(server, method, sent, key) for key in (None, "user-key", "admin-key")]
        without = None if needs == "no key" else (401, "invalid_api_key")
        user = (403, "admin_required") if needs == "an admin key" else None
        assert found == [without, user, None], f"{method} {path} is documented to need {needs}"
