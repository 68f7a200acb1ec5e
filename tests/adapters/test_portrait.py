"""Portraits: pictures pass, and nothing that is more than a picture does."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adapters.errors import Invalid
from adapters.manifest import AdapterManifest, PersonaCard
from adapters.portrait import (
    BASE_PORTRAIT,
    MAX_BYTES,
    PORTRAITS,
    initial_uri,
    place_portrait,
    portrait_uri,
    read_portrait,
)
from adapters.samples import PERSONAS
from adapters.store import AdapterStore
from tests import tiny

PICTURE = '<circle cx="5" cy="5" r="4" fill="#a00"/>'


def svg(body: str, attributes: str = "") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10" {attributes}>{body}</svg>'


def png(width: int, height: int, *extra: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + b"\xff\0\0" * width for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("path", sorted(PORTRAITS.glob("*.svg")), ids=lambda path: path.stem)
def test_shipped_portraits_are_fit_to_be_shown(path: Path) -> None:
    shown = ElementTree.fromstring(read_portrait(path))
    original = ElementTree.parse(path).getroot()
    assert [(each.tag, each.attrib) for each in shown.iter()] == [(each.tag, each.attrib) for each in original.iter()]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (svg("<script>alert(1)</script>"), "<script> is not allowed"),
        (svg(PICTURE, 'onload="alert(1)"'), "onload"),
        (svg('<image href="https://example.com/a.png"/>'), "<image> is not allowed"),
        (svg('<use href="https://example.com/a.svg#x"/>'), "<use> is not allowed"),
        (svg('<a href="https://example.com"/>'), "<a> is not allowed"),
        (svg("<style>@import url(https://example.com)</style>"), "<style> is not allowed"),
        (svg('<path style="fill:url(https://example.com)" d="M0 0"/>'), "style"),
        (svg('<path fill="url(https://example.com/a#b)" d="M0 0"/>'), "refers outside"),
        (svg('<path fill="URL( https://example.com )" d="M0 0"/>'), "refers outside"),
        (svg('<path xmlns:x="http://www.w3.org/1999/xlink" x:href="#a" d="M0 0"/>'), "href"),
        (svg("<foreignObject><p xmlns='http://www.w3.org/1999/xhtml'/></foreignObject>"), "foreignObject"),
        (svg('<set attributeName="href" to="javascript:1"/>'), "<set> is not allowed"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>' + svg("<title>&a;</title>"), "document type"),
        ('<?xml-stylesheet href="https://example.com"?>' + svg(PICTURE), "style sheet"),
        (svg("<g>" * 40 + "</g>" * 40), "nested deeper"),
        ("<html/>", "root must be"),
        (svg("<g>"), "not well-formed"),
        (svg(PICTURE + " " * MAX_BYTES), "larger than"),
    ],
)
def test_an_svg_that_is_more_than_a_picture_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "portrait.svg"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Invalid, match=re.escape(problem)) as refused:
        read_portrait(path)
    assert refused.value.param == "portrait"


def test_what_is_shown_holds_nothing_that_was_not_understood(tmp_path: Path) -> None:
    path = tmp_path / "portrait.svg"
    path.write_text(svg(f"<!-- a comment -->{PICTURE}stray text"), encoding="utf-8")
    shown = read_portrait(path).decode()
    assert "comment" not in shown and "stray" not in shown and "circle" in shown


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff\xd8\xff\xe0 a photo", "neither SVG nor PNG"),
        (png(8, 8)[:-20], "cut off"),
        (png(8, 8).replace(b"IDAT", b"IDAX"), "damaged"),
        (png(2000, 1), "2000×1 pixels"),
        (png(8, 8) + b"<script>", "cut off"),
    ],
)
def test_a_png_that_is_none_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "portrait.png"
    path.write_bytes(data)
    with pytest.raises(Invalid, match=re.escape(problem)):
        read_portrait(path)


def test_a_portrait_travels_with_its_adapter(tiny_base: Path, tmp_path: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny_base, rank=2, seed=1)
    drawn = tmp_path / "me.PNG"
    drawn.write_bytes(png(8, 8))
    card = PersonaCard(title="Me", portrait=place_portrait(drawn, adapter))
    AdapterManifest(name="me", base_name="b", base_fingerprint="", template_hash="", card=card).write(adapter)
    version = AdapterStore(tmp_path / "store").publish(adapter, "me")
    assert version.manifest is not None and version.manifest.card.portrait == "portrait.png"
    uri = portrait_uri(version.directory / "portrait.png")
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == png(8, 8)


def test_an_adapter_whose_portrait_runs_a_script_is_not_published(tiny_base: Path, tmp_path: Path) -> None:
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny_base, rank=2, seed=1)
    (adapter / "portrait.svg").write_text(svg("<script/>"), encoding="utf-8")
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(Invalid, match="<script> is not allowed"):
        store.publish(adapter, "me")
    assert store.names() == []


def test_shipped_personas_have_their_portraits_on_their_cards() -> None:
    for directory in PERSONAS.iterdir():
        card = json.loads((directory / "bianlian.json").read_text(encoding="utf-8"))["card"]
        assert read_portrait(directory / card["portrait"]) == read_portrait(PORTRAITS / f"{directory.name}.svg")


def test_who_has_no_portrait_has_an_initial() -> None:
    shown = base64.b64decode(initial_uri("<b>娘娘").partition(",")[2]).decode()
    assert ">B</text>" in shown and ElementTree.fromstring(shown) is not None
    assert initial_uri("a") != initial_uri("b") and portrait_uri(BASE_PORTRAIT).startswith("data:image/svg+xml")
