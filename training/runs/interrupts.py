"""Signals that ask a run to stop: noted, so that it can finish its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    def __init__(self) -> None:
        self.signal: int | None = None  # that asked this process to stop

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are noted; a second one raises KeyboardInterrupt at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only; whoever owns it leaves a wish in the journal
            return

        def ask(signum: int, frame: object) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = signum

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
