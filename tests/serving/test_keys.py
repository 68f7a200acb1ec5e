"""API keys: what is kept of them, who they let in, and for how long."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import app
import serving.keys
from adapters.errors import Conflict, Invalid, NotFound
from adapters.settings import Settings
from serving.database.database import Database
from serving.keys import DAY_S, KeyStore
from tests.serving.running import GREEDY, QUESTION, RunningServer, running_server, settings_for

ROOT = Path(__file__).parents[2]
CSP = "content-security-policy"
HOSTILE_NAMES = ["x'; DROP TABLE api_keys; --", "x' OR '1'='1", '"', "%", "[red]x[/red]", "小明的应用", "a" * 64]


@pytest.fixture
def store(database_url: str) -> Iterator[KeyStore]:
    database = Database(database_url)
    yield KeyStore(database)
    database.close()


def test_a_key_is_found_by_its_whole_text_only(store: KeyStore) -> None:
    made, text = store.create("mine", admin=True, requests_per_minute=5, tokens_per_minute=7)
    assert store.find(text) == made
    last = "A" if text[-1] != "A" else "B"
    for wrong in (text[:-1] + last, text[:-1], text + "A", made.prefix, f"{made.prefix}-", "", "bl-", "\0", "%", "'"):
        assert store.find(wrong) is None
    other = store.create("other")[1]
    assert store.find(made.prefix + other[len(made.prefix) :]) is None


def test_the_files_hold_the_hash_and_nothing_a_caller_could_send(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    made, text = KeyStore(database).create("mine")
    secret = text.removeprefix(f"{made.prefix}-").encode()

    def written() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert len(list(tmp_path.iterdir())) > 1  # the write-ahead log as well
    for content in (written(), (database.close(), written())[1]):
        assert made.prefix.encode() in content and secret not in content
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    assert len(secret) == 43 and text not in repr(made)


def test_names_are_values_never_sql(store: KeyStore) -> None:
    texts = {name: store.create(name)[1] for name in HOSTILE_NAMES}
    assert [key.name for key in store.all()] == HOSTILE_NAMES
    with pytest.raises(NotFound):
        store.revoke("x' OR '1'='2")
    store.revoke(HOSTILE_NAMES[1])
    assert [name for name in HOSTILE_NAMES if store.find(texts[name]) is None] == [HOSTILE_NAMES[1]]


@pytest.mark.parametrize("name", ["", " x", "x ", "-x", "--admin-key", "a\0b", "a\nb", "\x1b[31m", "a" * 65])
def test_names_that_would_confuse_are_refused(store: KeyStore, name: str) -> None:
    with pytest.raises(Invalid, match="key name"):
        store.create(name)


@pytest.mark.parametrize(
    "limits",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": 2**31},
        {"expires_in_days": 0},
        {"expires_in_days": float("nan")},
        {"expires_in_days": 1e9},
    ],
)
def test_limits_that_mean_nothing_are_refused(store: KeyStore, limits: dict) -> None:
    with pytest.raises(Invalid):
        store.create("x", **limits)
    assert not store.any_exist()


def test_a_name_is_given_once_and_again_after_its_key_was_revoked(store: KeyStore) -> None:
    _, first = store.create("app")
    with pytest.raises(Conflict, match="revoke it first"):
        store.create("app")
    store.revoke("app")
    _, second = store.create("app")
    assert store.find(first) is None and store.find(second) is not None
    assert [key.live for key in store.all()] == [False, True]


def test_an_expired_key_is_refused_and_still_closes_the_server(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = store.create("short", expires_in_days=2)
    assert store.find(text) is not None
    monkeypatch.setattr(serving.keys, "time", SimpleNamespace(time=lambda: time.time() + 2 * DAY_S))
    assert store.find(text) is None and KeyStore(store.database).any_exist()


@pytest.fixture
def server(tiny_base: Path, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(settings_for(tiny_base, tmp_path / "home")) as running:
        yield running


def bianlian(server: RunningServer, *arguments: str) -> str:
    """Standard output of the command line, run in a process of its own on the server's database."""
    url = server.services.settings.database_url
    command = [sys.executable, "-m", "app", "keys", *arguments, "--database", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ask(server: RunningServer, key: str | None, path: str = "/v1/chat/completions", **body: object) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(
        f"{server.url}{path}", json=body or {"model": "tiny", "messages": QUESTION, **GREEDY}, headers=headers
    )


def test_keys_made_and_revoked_elsewhere_count_from_the_next_request_on(server: RunningServer) -> None:
    load = {"path": "/v1/load_lora_adapter", "lora_name": "x", "lora_path": "/nowhere"}
    assert ask(server, None).status_code == 200
    user = bianlian(server, "create", "user")
    refused = ask(server, None)
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert ask(server, user).status_code == 200
    assert ask(server, user, **load).json()["error"]["code"] == "admin_required"
    admin = bianlian(server, "create", "admin", "--admin")
    assert ask(server, admin, **load).status_code == 403  # the path is outside the roots, and that is all
    assert "outside" in ask(server, admin, **load).json()["error"]["message"]
    for wrong in ("wrong", user + "x", user[:-1], "bl-000000000000-" + "A" * 43, "x" * 10_000, "sk-\xff"):
        reply = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {wrong}".encode("latin-1")})
        assert reply.status_code == 401, wrong
    listed = bianlian(server, "list")
    assert "user" in listed and user.rsplit("-", 1)[0][:15] in listed and user not in listed
    bianlian(server, "revoke", "user")
    assert ask(server, user).status_code == 401 and ask(server, admin).status_code == 200
    bianlian(server, "revoke", "admin")
    assert ask(server, admin).status_code == 401
    assert ask(server, None).status_code == 401  # the last key's end does not open the server


def test_keys_of_the_settings_work_beside_those_of_the_database(tiny_base: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_base, tmp_path / "home", api_key=["from-a-flag"], admin_key="admin-flag")
    with running_server(settings) as running:
        _, made = KeyStore(running.services.database).create("made")
        statuses = [ask(running, key).status_code for key in ("from-a-flag", "admin-flag", made, "other")]
        assert statuses == [200, 200, 200, 401]
        running.assert_nothing_held()


def test_the_page_asks_for_a_key_once_there_is_one_and_until_it_is_revoked(tiny_base: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_base, tmp_path / "home").model_copy(update={"ui": True})
    with running_server(settings) as running, httpx.Client(base_url=running.url) as visitor:
        assert visitor.get("/config").status_code == 200
        store = KeyStore(running.services.database)
        _, key = store.create("made")

        def shut_out() -> bool:
            join = visitor.post("/gradio_api/queue/join", json={"data": []})
            login = visitor.get("/")
            assert login.status_code == 401 and "password" in login.text and "default-src" in login.headers[CSP]
            return visitor.get("/config").status_code == join.status_code == 401

        assert shut_out()
        for wrong in ("password=wrong", "", f"username={key}", "password=" + "x" * 100_000, "password=%ff"):
            reply = visitor.post("/login", content=wrong)
            assert reply.status_code in (401, 413) and not visitor.cookies
        entered = visitor.post("/login", data={"password": key})
        assert entered.status_code == 303 and key not in entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax"} <= set(entered.headers["set-cookie"].split("; "))
        assert visitor.get("/config").status_code == 200 and "gradio" in visitor.get("/").text
        store.revoke("made")
        assert shut_out()


@pytest.mark.parametrize("exposed", [{"host": "0.0.0.0"}, {"cors_origins": ["*"]}])
def test_what_others_can_reach_needs_a_key_and_one_in_the_database_will_do(
    exposed: dict[str, Any], tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, **exposed)
    with pytest.raises(Invalid, match="bianlian keys create"):
        app._require_key_if_exposed(settings)
    database = Database(settings.database_url)
    KeyStore(database).create("made")
    database.close()
    app._require_key_if_exposed(settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "x", "--rpm", "0"], "rpm is 0"),
        (["create", "-- "], "key name"),
        (["revoke", "nobody"], "no key 'nobody' in use"),
        (["usage", "--group-by", "colour"], "not 'colour'"),
        (["usage", "--from", "2026-02-02", "--to", "2026-01-01"], "is after"),
        (["list", "--database", "nonsense"], "not a URL"),
    ],
)
def test_wrong_commands_are_one_line_and_exit_code_two(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    separated = ["--", rest[0]] if rest[0].startswith("-- ") else rest
    monkeypatch.setattr(sys, "argv", ["bianlian", "keys", command, *separated])
    with pytest.raises(SystemExit) as ended:
        app.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "user; no limits; never expires"),
        (["--admin", "--rpm", "60"], "admin; 60 requests a minute; never expires"),
        (
            ["--rpm", "60", "--tpm", "20000", "--expires", "2"],
            "60 requests a minute and 20,000 tokens a minute; expires",
        ),
    ],
)
def test_a_new_key_says_what_it_may_do_and_prints_nothing_but_itself(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    monkeypatch.setattr(sys, "argv", ["bianlian", "keys", "create", "mine", *arguments, "--database", url])
    with pytest.raises(SystemExit) as ended:
        app.main()
    written = capsys.readouterr()
    assert not ended.value.code and says in written.err
    if "--expires" in arguments:
        assert time.strftime("%Y-%m-%d", time.localtime(time.time() + 2 * DAY_S)) in written.err
    database = Database(url)
    try:
        assert KeyStore(database).find(written.out.strip()) is not None
    finally:
        database.close()


def test_looking_a_key_up_does_not_run_on_the_event_loop(store: KeyStore) -> None:
    """The database may be slow or locked; answers that stream meanwhile must not notice."""
    _, text = store.create("mine")

    async def run() -> str:
        with store.database.writing():  # nobody else may write
            found = await store.database.call(store.find, text)
        assert found
        return found.name

    assert asyncio.run(run()) == "mine"
