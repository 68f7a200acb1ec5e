"""`python -m training.runs.job DIRECTORY [DEVICE]`: the process of one run, as the queue starts it.

The status says how the run ended; what is printed ends up in its log."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args

from adapters.errors import BianlianError
from adapters.settings import Device
from training.quiet import silence_libraries


def main(directory: str, device: str = "auto") -> int:
    with suppress(OSError):  # should memory run out, the kernel is to end this process and not the server
        Path("/proc/self/oom_score_adj").write_text("500")
    assert device in get_args(Device)
    silence_libraries()
    from training.runs.run import run_job  # here: libraries have something to say while they are imported

    try:
        print(run_job(Path(directory), device=device).message)  # type: ignore[arg-type]
    except BianlianError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
