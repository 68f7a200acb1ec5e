"""Notes of the libraries that would be noise at every start."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says at every start that tokenizer and model now agree on the pad token, TRL that names will go in
    its next major version and that ORPO may move, and datasets draws a bar for every look at a table."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    level, bars = logging.get_verbosity(), is_progress_bar_enabled()
    logging.set_verbosity_error()
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bar()
