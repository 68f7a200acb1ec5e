"""Training's tests start many short runs, and transformers collects garbage before each."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """What importing the libraries has left is not looked through again at every run."""
    import training.trainer  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()
