"""uvicorn, but asked to stop it first answers what runs: new work is refused with 503 on a port that still listens,
so that callers learn why, and the process ends when the last answer has."""

from types import FrameType

import uvicorn

from serving.async_engine import AsyncEngine

GRACE_S = 4  # what clients get, once all answers have ended, to read the rest of theirs
IDLE_GRACE_S = 1  # the same, when nobody waited for an answer: open pages keep connections


class DrainingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, engine: AsyncEngine, drain_s: float):
        super().__init__(config)
        self._engine = engine
        self._drain_s = drain_s
        self._asked: tuple[int, FrameType | None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; another ends the answers that still run, with an error, at once."""
        self.config.timeout_graceful_shutdown = GRACE_S if self._engine.busy else IDLE_GRACE_S
        self._engine.drain(0 if self._asked else self._drain_s)
        self._asked = (sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._asked and not self._engine.busy:
            super().handle_exit(*self._asked)
        return await super().on_tick(counter)
