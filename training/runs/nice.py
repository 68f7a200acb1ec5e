"""How a training process makes way for others that want the same core."""

import os
from contextlib import suppress

# The scheduler gives it a seventieth of what a server's thread gets; at 10 it was a tenth, and answers felt it.
NICENESS = 19


def be_nice(process: int) -> None:
    """Every thread of a process: on Linux each has a level of its own, and new ones take their maker's. It cannot be
    taken back."""
    tasks = f"/proc/{process}/task"
    threads = [int(name) for name in os.listdir(tasks)] if os.path.isdir(tasks) else [process]
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended
            if os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
