"""`bianlian serve` that on SIGUSR1 gives back what it does not use, so that its memory can be compared over time."""

import ctypes
import gc
import signal
from types import FrameType

import app


def main() -> None:
    libc = ctypes.CDLL(None)

    def tidy(sig: int, frame: FrameType | None) -> None:
        gc.collect()
        if hasattr(libc, "malloc_trim"):  # glibc's
            libc.malloc_trim(0)

    signal.signal(signal.SIGUSR1, tidy)
    app.main()


if __name__ == "__main__":
    main()
