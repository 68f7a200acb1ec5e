"""`bianlian serve` as a process of its own, for as long as a `with` lasts."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

READY_WITHIN_S = 300


class Server:
    """Prefix cache off, and no UI unless it is asked for. `module` may name another program with the same command line
    as `app`."""

    def __init__(
        self,
        base: Path,
        home: Path,
        *,
        adapters: dict[str, Path] | None = None,
        quantize: str = "none",
        module: str = "app",
        environment: dict[str, str] | None = None,
        ui: bool = False,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", module, "serve", "--base", str(base), "--port", str(port)]
        command += ["--quantize", quantize, *([] if ui else ["--no-ui"])]
        for name, path in (adapters or {}).items():
            command += ["--adapter", f"{name}={path}"]
        settings = {"BIANLIAN_HOME": str(home), "BIANLIAN_PREFIX_CACHE": "false"} | (environment or {})
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "server.log"  # a line a request, and what went wrong
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=log)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self.close()
        said = self.log.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the server did not become ready within {READY_WITHIN_S} s; it said:\n{said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.send_signal(signal.SIGINT)  # as Ctrl-C: the program runs to its own end
        self.wait()

    def send_signal(self, sig: signal.Signals) -> None:
        self._process.send_signal(sig)

    def wait(self) -> int:
        """Its exit code, when it has ended; negative: the signal that ended it."""
        return self._process.wait()
