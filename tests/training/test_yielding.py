"""Training steps back for a server's answers, and never starves. The clock is the test's, the server is real."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import training.runs.yielding as yielding_module
from tests.adapters.test_presence import OtherServer, other_server
from training.runs.nice import NICENESS
from training.runs.yielding import PAUSE_S, QUIET_S, SHARE, Yielding


class Clock:
    """Time goes by only in `sleep`, and when somebody works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OtherServer]:
    with other_server(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def as_nice_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yielding_module, "be_nice", lambda process: None)  # which lasts; a process of its own tests it


def starting(home: Path, clock: Clock, stopping: Callable[[], bool] = lambda: False) -> Yielding:
    yielding = Yielding(home, stopping, clock=clock, sleep=clock.sleep)
    yielding.step_back()
    return yielding


def test_nobody_to_wait_for_no_pause(tmp_path: Path, clock: Clock, server: OtherServer) -> None:
    yielding = starting(tmp_path, clock)
    clock.now += 1
    yielding.step_back()  # a server, but an idle one
    server.kill()
    clock.now += 1
    yielding.step_back()
    assert yielding.pauses == 0 and clock.now == 102


def test_a_server_that_always_answers_leaves_training_its_share(
    tmp_path: Path, clock: Clock, server: OtherServer
) -> None:
    server.say("2")
    yielding = starting(tmp_path, clock)
    begin = clock.now
    for _ in range(10):
        clock.now += 0.1  # a piece of work
        yielding.step_back()
    assert yielding.pauses >= 10 * 0.1 * (1 / SHARE - 1) / PAUSE_S - 10
    assert 10 * 0.1 / (clock.now - begin) == pytest.approx(SHARE)
    assert yielding.paused_s == pytest.approx(10 * 0.1 * (1 / SHARE - 1))


def test_a_pause_ends_with_the_last_answer(tmp_path: Path, clock: Clock, server: OtherServer) -> None:
    server.say("1")
    yielding = starting(tmp_path, clock)

    def answered_after_three() -> None:
        if yielding.pauses == 3:
            server.say("0")

    clock.on_sleep = answered_after_three
    clock.now += 10
    yielding.step_back()
    assert yielding.pauses == 3


def test_a_run_that_is_to_stop_does_not_wait(tmp_path: Path, clock: Clock, server: OtherServer) -> None:
    server.say("1")
    yielding = starting(tmp_path, clock, stopping=lambda: yielding.pauses == 2)
    clock.now += 10
    yielding.step_back()
    assert yielding.pauses == 2


def test_threads_are_halved_while_the_server_is_in_use(tmp_path: Path, clock: Clock, server: OtherServer) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        yielding = starting(tmp_path, clock)
        assert torch.get_num_threads() == 4
        server.say("1")
        yielding.step_back()
        assert torch.get_num_threads() == 2
        server.say("0")
        clock.now += QUIET_S
        yielding.step_back()
        assert torch.get_num_threads() == 2  # somebody may be reading, and about to ask again
        clock.now += 0.1
        yielding.step_back()
        assert torch.get_num_threads() == 4
        server.say("1")
        yielding.step_back()
        yielding.end()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


NICE = """
import os, sys, threading
from pathlib import Path
from training.runs.yielding import Yielding
woken = threading.Event()
threading.Thread(target=woken.wait).start()
yielding = Yielding(Path(sys.argv[1]))
levels = lambda: {os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")}
print(levels())
yielding.step_back()
print(levels())
woken.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have nice levels of their own on Linux alone")
def test_every_thread_becomes_nice_once_the_server_is_in_use(tmp_path: Path, server: OtherServer) -> None:
    server.say("1")
    out = subprocess.run([sys.executable, "-c", NICE, str(tmp_path)], capture_output=True, text=True, check=True)
    level = os.getpriority(os.PRIO_PROCESS, 0)
    assert out.stdout.splitlines() == [str({level}), str({max(level, NICENESS)})]
