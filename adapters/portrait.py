"""Portraits of personas: a small SVG or PNG that travels in the adapter's directory.

Somebody else drew it, so it is checked before it is published, and again before it is shown. An SVG may hold shapes and
nothing else: no script, no style sheet, no text, no link and no picture from elsewhere. What is shown is written anew
from the shapes that were understood."""

import base64
import re
import struct
import zlib
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

from adapters.errors import Invalid
from adapters.settings import BUNDLED

PortraitFile = Literal["portrait.svg", "portrait.png"]
PORTRAIT_FILES: tuple[PortraitFile, ...] = get_args(PortraitFile)
PORTRAITS = BUNDLED / "portraits"
BASE_PORTRAIT = PORTRAITS / "base.svg"
MAX_BYTES = 64 * 1024
MAX_SIDE = 1024  # pixels of a PNG

_SVG = "http://www.w3.org/2000/svg"
_MAX_DEPTH = 32
_ELEMENTS = frozenset(
    "svg g defs clipPath mask linearGradient radialGradient stop path circle ellipse rect line polyline polygon title "
    "desc".split()
)
_ATTRIBUTES = frozenset(
    "id viewBox width height preserveAspectRatio role aria-label aria-hidden version d x y x1 y1 x2 y2 cx cy r rx ry "
    "fx fy points transform opacity color fill fill-opacity fill-rule clip-path clip-rule mask stroke stroke-width "
    "stroke-opacity stroke-linecap stroke-linejoin stroke-miterlimit stroke-dasharray stroke-dashoffset offset "
    "stop-color stop-opacity gradientUnits gradientTransform spreadMethod clipPathUnits maskUnits "
    "vector-effect".split()
)
_OWN_REFERENCE = re.compile(r"url\(#[\w-]+\)")
_PNG = b"\x89PNG\r\n\x1a\n"


def check_portraits(directory: Path) -> None:
    """Invalid when a portrait in an adapter's directory is not fit to be shown."""
    for name in PORTRAIT_FILES:
        if (directory / name).is_file():
            read_portrait(directory / name)


def place_portrait(source: Path, directory: Path) -> PortraitFile:
    """Write the portrait `source` into an adapter's directory. Returns its name there, which belongs on the card.
    Invalid when it is not fit to be shown."""
    name: PortraitFile = "portrait.svg" if source.suffix.lower() == ".svg" else "portrait.png"
    (directory / name).write_bytes(read_portrait(source))
    return name


def read_portrait(path: Path) -> bytes:
    """The picture at `path` as it may be shown. Invalid when it is too large, broken, or more than a picture."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", param="portrait") from error
    if len(data) > MAX_BYTES:
        raise Invalid(f"{path} is larger than {MAX_BYTES >> 10} KiB; make the portrait smaller", param="portrait")
    try:
        if path.suffix.lower() == ".svg":
            return _clean_svg(data)
        _check_png(data)
    except ValueError as error:
        raise Invalid(f"{path} is no portrait that can be shown: {error}", param="portrait") from error
    return data


def portrait_uri(path: Path) -> str:
    """`read_portrait` as a data URI for an <img>."""
    found = path.stat()
    return _uri_of(path, found.st_mtime_ns, found.st_size)


def initial_uri(name: str) -> str:
    """A data URI for who has no portrait: the first character of `name`, on a colour of its own."""
    hue = zlib.crc32(name.encode()) % 360
    letter = escape(next((character for character in name if character.isalnum()), "·").upper())
    svg = (
        f'<svg xmlns="{_SVG}" viewBox="0 0 256 256"><circle cx="128" cy="128" r="126" fill="hsl({hue} 38% 36%)"/>'
        '<text x="128" y="170" text-anchor="middle" font-family="system-ui,sans-serif" font-size="120" '
        f'fill="#fff">{letter}</text></svg>'
    )
    return _as_uri("image/svg+xml", svg.encode())


@lru_cache(maxsize=256)
def _uri_of(path: Path, mtime_ns: int, size: int) -> str:
    kind = "image/svg+xml" if path.suffix.lower() == ".svg" else "image/png"
    return _as_uri(kind, read_portrait(path))


def _as_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _clean_svg(data: bytes) -> bytes:
    text = data.decode("utf-8")
    if re.search(r"<!(?!--)|<\?(?!xml\s)", text):
        raise ValueError("it declares a document type, entities or a style sheet; save it as plain SVG")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not well-formed XML ({error})") from error
    if root.tag != f"{{{_SVG}}}svg" or not (root.get("viewBox") or root.get("width")):
        raise ValueError(f"its root must be an <svg> of {_SVG} with a viewBox")
    clean = _clean_element(root, _MAX_DEPTH)
    clean.set("xmlns", _SVG)
    return ElementTree.tostring(clean, encoding="unicode").encode()


def _clean_element(element: ElementTree.Element, depth: int) -> ElementTree.Element:
    """A copy, of what is allowed. ValueError names the first thing that is not."""
    if not depth:
        raise ValueError(f"its elements are nested deeper than {_MAX_DEPTH}")
    name = element.tag.removeprefix(f"{{{_SVG}}}")
    if name not in _ELEMENTS:
        raise ValueError(f"<{name[:40]}> is not allowed; leave shapes only, with text turned into paths")
    for attribute, value in element.attrib.items():
        if attribute not in _ATTRIBUTES:
            raise ValueError(f"the attribute {attribute[:60]} of <{name}> is not allowed; use presentation attributes")
        if "url" in value.lower() and not _OWN_REFERENCE.fullmatch(value):
            raise ValueError(f"{attribute} of <{name}> refers outside the file; use url(#id) only")
    clean = ElementTree.Element(name, element.attrib)
    if name in ("title", "desc"):
        clean.text = element.text
    clean.extend([_clean_element(child, depth - 1) for child in element])
    return clean


def _check_png(data: bytes) -> None:
    if not data.startswith(_PNG):
        raise ValueError("it is neither SVG nor PNG; convert it")
    at, kinds = len(_PNG), list[bytes]()
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        if at + 12 + length > len(data):
            raise ValueError("it is cut off")
        body = data[at + 4 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(body)):
            raise ValueError("it is damaged")
        if not kinds:
            if kind != b"IHDR" or length != 13:
                raise ValueError("it has no header")
            width, height = struct.unpack_from(">II", data, at + 8)
            if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
                raise ValueError(f"it is {width}×{height} pixels; {MAX_SIDE}×{MAX_SIDE} at most")
        kinds.append(kind)
        at += 12 + length
    if kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds:
        raise ValueError("it is cut off")
