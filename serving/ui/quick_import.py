"""Gradio, imported in half the time."""

import inspect
from typing import Any


def import_gradio() -> None:
    """Gradio keeps a type stub beside each of its components, for editors, and at every import parses all their sources
    to see whether the stubs are as they should be: more than a second. It passes over a class without a file, so its
    classes have none while it is imported."""
    getfile = inspect.getfile

    def of_others(object: Any) -> str:
        if isinstance(object, type) and object.__module__.startswith("gradio."):
            raise OSError("no stub is wanted")
        return getfile(object)

    inspect.getfile = of_others
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = getfile
