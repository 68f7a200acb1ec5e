"""The floors of the house, read from the imports: app → serving | training → adapters, faces are the roof."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"adapters": set(), "serving": {"adapters"}, "training": {"adapters"}}
FACE_LIBRARIES = {"fastapi", "gradio", "typer", "sse_starlette", "starlette", "uvicorn"}
# Making the bundled base and personas are programs of their own, with their own command lines.
OWN_PROGRAMS = {"training/__main__.py", "training/pretrain/__main__.py"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Modules a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def is_face(module: str) -> bool:
    parts = module.split(".")
    if parts[0] not in PACKAGES or len(parts) < 2:
        return False
    return parts[1] in {"api", "ui", "cli"} or parts[1].endswith("_cli")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    inside = path.relative_to(ROOT)
    package = inside.parts[0]
    module = ".".join(inside.with_suffix("").parts)
    for imported in imports(path):
        top = imported.split(".")[0]
        assert top != "app", f"{inside} imports the roof"
        assert top not in PACKAGES or top == package or top in PACKAGES[package], f"{inside} imports {imported}"
        if not is_face(module) and str(inside) not in OWN_PROGRAMS:
            assert top not in FACE_LIBRARIES, f"{inside} is no face but imports {imported}"
            assert not is_face(imported), f"{inside} imports the face {imported}"


def test_the_engine_knows_neither_asyncio_nor_http() -> None:
    for path in (ROOT / "serving" / "engine").rglob("*.py"):
        assert not {"asyncio", "httpx", "http"} & {name.split(".")[0] for name in imports(path)}, path
