"""Models and data sets from hubs, fetched from a mirror on this machine by the real clients."""

import fcntl
import os
import pty
import socket
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from adapters.base_model import base_name, load_base, locate_base
from adapters.errors import BianlianError, Forbidden, Invalid, NotFound, Unavailable
from adapters.hub import HubReference, base_directory, download, list_files, parse_reference
from tests.hub_mirror import COMMIT, Mirror, files_in, point_at, running_mirror

HUBS = ["hf", "modelscope"]


def nobody() -> str:
    """An address on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("hub", HUBS)
def test_a_base_is_loaded_by_its_id_and_what_is_no_part_of_it_is_left(
    hub: str, mirror: Mirror, tiny_base: Path
) -> None:
    others = {"pytorch_model.bin": b"pickle", "modeling_x.py": b"code", "onnx/model.safetensors": b"other"}
    mirror.models["org/Tiny-0.1"] = {**files_in(tiny_base), **others}
    base = load_base(f"{hub}:org/Tiny-0.1", device="cpu")
    assert base.name == "Tiny-0.1"
    assert base.fingerprint == load_base(str(tiny_base), device="cpu").fingerprint
    assert not {path for path, _ in mirror.asked} & set(others)
    asked = len(mirror.asked)
    assert locate_base(f"{hub}:org/Tiny-0.1") == base.directory
    assert len(mirror.asked) == asked, "what is here is not downloaded again"


@pytest.mark.parametrize("hub", HUBS)
def test_a_download_broken_half_way_goes_on_where_it_was(
    hub: str, mirror: Mirror, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # bytes huggingface_hub keeps at a time: 10 MB
    mirror.models["org/tiny"] = files_in(tiny_base)
    mirror.cut["model.safetensors"] = 1000
    directory = locate_base(f"{hub}:org/tiny")
    assert (directory / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    parts = [wanted for path, wanted in mirror.asked if path == "model.safetensors"]
    assert len(parts) == 2 and parts[1] is not None and parts[1].startswith("bytes=1000-")


def test_a_download_given_up_is_gone_on_with_by_the_next_command(mirror: Mirror, tiny_base: Path) -> None:
    mirror.models["org/tiny"] = files_in(tiny_base)
    mirror.cut, mirror.cut_always = {"model.safetensors": 0}, True
    with pytest.raises(Unavailable, match=r"cannot get 'org/tiny' on http.*try again"):
        locate_base("modelscope:org/tiny")
    (part,) = Path(os.environ["MODELSCOPE_CACHE"]).rglob("model.safetensors.part")
    part.write_bytes((tiny_base / "model.safetensors").read_bytes()[:5000])
    mirror.cut, before = {}, len(mirror.asked)
    directory = locate_base("modelscope:org/tiny")
    assert ("model.safetensors", "bytes=5000-") in mirror.asked[before:]
    assert files_in(tiny_base).items() <= files_in(directory).items()
    assert list(directory.rglob("*.part")) == []


def test_a_file_that_arrives_damaged_is_not_kept(mirror: Mirror, tiny_base: Path) -> None:
    mirror.models["org/tiny"] = files_in(tiny_base)
    with pytest.raises(Unavailable):
        mirror.cut, mirror.cut_always = {"model.safetensors": 0}, True
        locate_base("modelscope:org/tiny")
    mirror.cut = {}
    (part,) = Path(os.environ["MODELSCOPE_CACHE"]).rglob("model.safetensors.part")
    part.write_bytes(b"x" * 100)
    with pytest.raises(Unavailable, match=r"model\.safetensors arrived damaged from http.*try again"):
        locate_base("modelscope:org/tiny")
    assert (locate_base("modelscope:org/tiny") / "model.safetensors").is_file()


@pytest.mark.parametrize("hub", HUBS)
def test_without_a_network_what_is_in_the_cache_serves(
    hub: str, mirror: Mirror, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.models["org/tiny"] = files_in(tiny_base)
    directory = locate_base(f"{hub}:org/tiny")
    point_at(nobody(), monkeypatch)
    assert locate_base(f"{hub}:org/tiny") == directory
    way_out = "give a directory or 'bianlian-mini'"
    with pytest.raises(Unavailable, match=way_out) as refusal:
        locate_base(f"{hub}:org/other")
    assert ("HF_ENDPOINT=https://hf-mirror.com" in refusal.value.message) == (hub == "hf")
    assert "\n" not in refusal.value.message


def test_modelscope_has_a_newer_and_an_older_name_for_its_address(
    mirror: Mirror, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.models["org/tiny"] = files_in(tiny_base)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", mirror.url)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", nobody())
    assert locate_base("modelscope:org/tiny").is_dir()


def test_offline_mode_is_named_when_it_is_the_reason(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="HF_HUB_OFFLINE forbids to ask; unset it, or give a directory"):
        locate_base("org/tiny")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("hf:org/nobody", NotFound, "no model 'org/nobody' on http.*set HF_TOKEN.*or give a directory"),
        ("modelscope:org/nobody", NotFound, "no model 'org/nobody' on http.*set MODELSCOPE_API_TOKEN"),
        ("hf:org/gated", Forbidden, "accept its terms at http.*/org/gated, then set HF_TOKEN"),
        ("modelscope:org/gated", Forbidden, "accept its terms at .*then set MODELSCOPE_API_TOKEN"),
        ("hf:org/tiny@nowhere", NotFound, "no revision 'nowhere' of 'org/tiny'"),
        ("hf:org/pickled", Invalid, "no safetensors weights; pickled ones .* are refused"),
        ("modelscope:org/pickled", Invalid, "no safetensors weights; pickled ones .* are refused"),
        ("hf:org/data-only", Invalid, "no config.json"),
        ("/no/such/directory", NotFound, "give 'bianlian-mini', a directory, or a hub id"),
        ("a/b/c", NotFound, "give 'bianlian-mini', a directory, or a hub id"),
    ],
)
def test_what_cannot_be_had_says_the_way_out_in_one_line(
    name: str, kind: type[BianlianError], message: str, mirror: Mirror
) -> None:
    mirror.models["org/tiny"] = {"config.json": b"{}"}
    mirror.models["org/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    mirror.models["org/data-only"] = {"vocab.json": b"{}"}
    mirror.gated.add("org/gated")
    with pytest.raises(kind, match=message) as refusal:
        locate_base(name)
    assert refusal.value.param == "base"
    assert "\n" not in refusal.value.message
    assert "pytorch_model.bin" not in {path for path, _ in mirror.asked}


@pytest.mark.parametrize(("hub", "token"), [("hf", "HF_TOKEN"), ("modelscope", "MODELSCOPE_API_TOKEN")])
def test_the_token_is_sent(hub: str, token: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.models["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x"}
    monkeypatch.setenv(token, "secret-1")
    base_directory(HubReference("modelscope" if hub == "modelscope" else "hf", "org/tiny"))
    assert set(mirror.tokens) == {"Bearer secret-1"}


def test_a_token_stays_with_its_hub_when_a_file_lies_elsewhere(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret-1")
    with running_mirror() as storage:
        storage.models["bucket/one"] = {"model.safetensors": b"0123456789"}
        mirror.models["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"0123456789"}
        mirror.redirect["model.safetensors"] = f"{storage.url}/bucket/one/resolve/x/model.safetensors"
        storage.cut["model.safetensors"] = 4
        directory = locate_base("modelscope:org/tiny")
        assert (directory / "model.safetensors").read_bytes() == b"0123456789"
        assert storage.asked == [("model.safetensors", None), ("model.safetensors", "bytes=4-")]
    assert mirror.tokens and not storage.tokens


def test_a_cache_that_cannot_be_written_says_which_variable_moves_the_cache(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "file"))  # no directory can be made below a file
    with pytest.raises(Unavailable, match="cannot keep 'org/tiny'.*set MODELSCOPE_CACHE to another place"):
        locate_base("modelscope:org/tiny")


@pytest.mark.parametrize("hub", HUBS)
def test_a_download_draws_a_bar_on_a_terminal(hub: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.models["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x" * 100_000}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    transformers_logging.disable_progress_bar()  # as `bianlian train` does, for bars that are not about downloads
    drawn: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(ours, drawn))
    reader.start()
    try:
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            locate_base(f"{hub}:org/tiny")
    finally:
        transformers_logging.enable_progress_bar()
        reader.join()
    assert b"100%" in b"".join(drawn)


def _drain(terminal: int, into: list[bytes]) -> None:
    """Until its other end is closed, which Linux reports as an error."""
    with os.fdopen(terminal, "rb", buffering=0) as reading:
        while True:
            try:
                into.append(reading.read(4096))
            except OSError:
                return


def test_a_revision_is_pinned(mirror: Mirror) -> None:
    mirror.models["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x"}
    assert locate_base("org/tiny@v1").name == COMMIT
    assert locate_base("modelscope:org/tiny@v1.0").name == "v1.0"


@pytest.mark.parametrize("hub", HUBS)
def test_files_of_a_data_set_are_listed_page_by_page_and_fetched_one_by_one(hub: str, mirror: Mirror) -> None:
    files = {f"part/{number:03}.json": str(number).encode() for number in range(450)}
    mirror.datasets["org/lines"] = files
    reference = parse_reference(f"{hub}:org/lines")
    assert reference is not None
    assert list_files(reference, "dataset") == sorted(files)
    directory = download(reference, "dataset", ["part/007.json"])
    assert (directory / "part" / "007.json").read_bytes() == b"7"
    assert [path for path, _ in mirror.asked] == ["part/007.json"]


def test_a_listing_cannot_write_outside_the_cache(mirror: Mirror, tmp_path: Path) -> None:
    mirror.models["org/evil"] = {"config.json": b"{}", "a/../../../../evil.json": b"x"}
    with pytest.raises(Invalid, match="outside its repository"):
        download(HubReference("modelscope", "org/evil"), "model", ["*"])
    assert list(tmp_path.rglob("evil.json")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-0.6B", HubReference("hf", "Qwen/Qwen3-0.6B")),
        ("hf:Qwen/Qwen3-0.6B@main", HubReference("hf", "Qwen/Qwen3-0.6B", "main")),
        ("modelscope:Qwen/Qwen3-0.6B", HubReference("modelscope", "Qwen/Qwen3-0.6B")),
        ("bianlian-mini", None),
        ("./models/x", None),
        ("/models/x", None),
        ("~/x", None),
        ("a/b/c", None),
        ("org/../x", None),
    ],
)
def test_what_is_a_reference(text: str, expected: HubReference | None) -> None:
    assert parse_reference(text) == expected


def test_a_base_is_called_by_the_last_part_of_its_id(tmp_path: Path) -> None:
    assert base_name("modelscope:Qwen/Qwen3-0.6B@v1") == "Qwen3-0.6B"
    assert base_name(str(tmp_path / "my@base")) == "my@base"
    assert base_name("bianlian-mini") == "bianlian-mini"
