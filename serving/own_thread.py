"""Heavy work on a thread of its own, which ends with it.

The OpenMP runtime keeps a team of threads for every thread that has ever computed something in parallel. When all teams
together have more threads than the machine has processors, they sleep between two operations instead of waiting for the
next, and decoding takes a third longer. A thread that ends takes its team along; only the engine's may stay."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def run_on_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises. Blocks."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function, *args, **kwargs).result()


async def on_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `run_on_own_thread`, without blocking the event loop. Cancelled, it leaves the work to end by itself."""
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, partial(function, *args, **kwargs))
    finally:
        executor.shutdown(wait=False)
