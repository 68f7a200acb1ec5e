"""A real server for tests: uvicorn on a free port, in a thread, over real services."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import uvicorn

from adapters.settings import Settings
from app import Services, build_app, build_services, listen
from serving.api.server import DrainingServer

QUESTION = [{"role": "user", "content": "你好，你是谁？"}]
GREEDY = {"temperature": 0, "max_tokens": 24}


def settings_for(base: Path, home: Path, **options: object) -> Settings:
    return Settings(home=home, base=str(base), device="cpu", dtype="float32", kv_cache_memory=0.05, ui=False, **options)


@dataclass
class RunningServer:
    url: str
    services: Services
    server: DrainingServer

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)

    def assert_nothing_held(self) -> None:
        """Within a few seconds every block and lease of ended requests is free."""
        engine = self.services.engine.engine
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (engine.has_work or self.services.registry.total_leases):
            time.sleep(0.02)
        assert engine.pool.num_used == 0
        assert not engine.has_work
        assert self.services.registry.total_leases == 0


@contextmanager
def running_server(settings: Settings) -> Iterator[RunningServer]:
    services = build_services(settings)
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(build_app(services), log_config=None, access_log=False, timeout_graceful_shutdown=2)
        server = DrainingServer(config, services.engine, settings.drain_seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield RunningServer(f"http://127.0.0.1:{listening.getsockname()[1]}", services, server)
        finally:
            server.should_exit = True
            thread.join(timeout=30)
