"""Heavy work ends with its thread, and takes what it raised or returned with it."""

import asyncio
import threading

import pytest

from serving.own_thread import on_own_thread, run_on_own_thread


def test_the_thread_of_heavy_work_ends_with_it() -> None:
    thread = run_on_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    thread.join(10)
    assert not thread.is_alive()


def test_the_event_loop_goes_on_beside_heavy_work() -> None:
    async def work_and_loop() -> threading.Thread:
        seen = threading.Event()

        def work() -> threading.Thread:
            assert seen.wait(10), "the loop stood still"
            return threading.current_thread()

        async def look() -> None:
            seen.set()

        thread, _ = await asyncio.gather(on_own_thread(work), look())
        return thread

    thread = asyncio.run(work_and_loop())
    thread.join(10)
    assert not thread.is_alive()


def test_what_heavy_work_raises_reaches_the_caller() -> None:
    with pytest.raises(KeyError):
        run_on_own_thread({}.__getitem__, "missing")
