"""`python -m training.supervise HOME [DEVICE [MAX_RUNNING]]`: work off the queue of a home without a server; end."""

import asyncio
import sys
from pathlib import Path

from adapters.settings import Device
from training.fine_tuning import check_files
from training.jobs import JobQueue, Supervisor


def main(root: str, device: Device = "auto", max_running: str = "1") -> None:
    queue = JobQueue(Path(root))
    supervisor = Supervisor(queue, max_running=int(max_running), device=device, check=check_files)
    asyncio.run(supervisor.watch(until_empty=True))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
