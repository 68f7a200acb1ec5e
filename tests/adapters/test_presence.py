"""What one process can tell of another that serves from the same home."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.presence import Awaited, ServerPresence, awaited

SERVER = """
import sys
from pathlib import Path
from adapters.presence import ServerPresence
presence = ServerPresence(Path(sys.argv[1]))
for line in sys.stdin:
    if line.strip() == "close":
        presence.close()
    else:
        presence.note(int(line))
    print("done", flush=True)
"""


class OtherServer:
    def __init__(self, home: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.say("0")

    def say(self, line: str) -> None:
        """`close`, or the number of answers awaited; returns when that is so."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def other_server(home: Path) -> Iterator[OtherServer]:
    server = OtherServer(home)
    try:
        yield server
    finally:
        server.kill()


def test_answers_of_all_other_servers_are_seen_as_their_number_changes(tmp_path: Path) -> None:
    assert awaited(tmp_path) == Awaited(0, 0)
    with other_server(tmp_path) as one, other_server(tmp_path) as two:
        assert awaited(tmp_path) == Awaited(2, 0)
        one.say("3")
        two.say("1")
        assert awaited(tmp_path) == Awaited(2, 4)
        one.say("0")
        assert awaited(tmp_path) == Awaited(2, 1)
        two.say("close")
        assert awaited(tmp_path) == Awaited(1, 0)


def test_a_killed_server_is_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    with other_server(tmp_path) as server:
        server.say("7")
        server.kill()
        assert awaited(tmp_path) == Awaited(0, 0)
        assert list((tmp_path / "servers").iterdir()) == []


def test_a_process_does_not_step_back_for_itself(tmp_path: Path) -> None:
    presence = ServerPresence(tmp_path)
    presence.note(5)
    assert awaited(tmp_path) == Awaited(0, 0)
    assert len(list((tmp_path / "servers").iterdir())) == 1  # nor takes itself for dead
    presence.close()
    presence.close()
    assert list((tmp_path / "servers").iterdir()) == []
