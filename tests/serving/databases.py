"""Real databases for tests: SQLite in a file, and PostgreSQL in a private cluster where its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

BINARIES = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
BINARIES += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


@dataclass
class Cluster:
    user: str
    directory: Path  # of its socket; it listens on nothing else
    made: int = 0

    def new_database(self) -> str:
        """The URL of an empty database."""
        self.made += 1
        name = f"test_{self.made}"
        with psycopg.connect(f"host={self.directory} user={self.user} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://{self.user}@/{name}?host={self.directory}"


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Skips the test where PostgreSQL is not installed."""
    binaries = next((path for path in BINARIES if (path / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = UNPRIVILEGED if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    run_as = {"user": user} if os.getuid() == 0 else {}
    # Not pytest's directory, which other users may not enter; and a socket's path must be short.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    if run_as:
        shutil.chown(directory, user)

    def run(program: str, *arguments: str) -> None:
        # pg_ctl leaves the server behind with our pipes open, so its output goes to a file.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [binaries / program, *arguments], stdout=output, stderr=output, cwd=directory, check=False, **run_as
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode()

    data, log = str(directory / "data"), str(directory / "log")
    try:
        run("initdb", "-D", data, "-A", "trust", "--no-sync", "-U", user, "-E", "UTF8", "--locale", "C")
        options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off"
        run("pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield Cluster(user, directory)
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)
