"""`python -m training.jobs.supervise HOME [DEVICE [MAX_RUNNING [SNAPSHOT_RUNS]]]`: work off a home's queue, and end."""

import asyncio
import sys
from pathlib import Path

from adapters.settings import Device
from training.jobs.queue import JobQueue, Supervisor


def main(root: str, device: Device = "auto", max_running: str = "1", snapshot_runs: str = "20") -> None:
    queue = JobQueue(Path(root))
    supervisor = Supervisor(queue, max_running=int(max_running), device=device, snapshot_runs=int(snapshot_runs))
    asyncio.run(supervisor.watch(until_empty=True))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
