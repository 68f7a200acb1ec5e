"""AdapterEffects: what each adapter changes, learnt once for each digest: when an operator brings it in, or in passing
after one of its first answers."""

import logging
import time
from functools import partial

from adapters.manifest import AdapterVersion
from serving.async_engine import AsyncEngine
from serving.engine.effect import Effect

# While answers run, which wait for each of these as for a prompt; under traffic over many adapters not all of them may
# be learnt at once.
IN_PASSING_S = 1.0

log = logging.getLogger(__name__)


class AdapterEffects:
    def __init__(self, engine: AsyncEngine):
        self._engine = engine
        self._known: dict[str, Effect] = {}
        self._in_passing_s = 0.0  # time.monotonic of the last

    def get(self, digest: str) -> Effect | None:
        return self._known.get(digest)

    async def measure(self, version: AdapterVersion) -> Effect | None:
        """What a version in memory changes, if there is room to find out now."""
        if self._engine.alive:
            await self._engine.call(partial(self._measure, version))
        return self.get(version.digest)

    def learn_in_passing(self, version: AdapterVersion) -> None:
        """Measure before the engine's next step, unless that is known, or running answers have waited for another a
        moment ago: then one of the next answers is the occasion. Any thread."""
        if version.digest not in self._known:
            self._engine.post(partial(self._pass, version))

    # The engine's thread.

    def _pass(self, version: AdapterVersion) -> None:
        now = time.monotonic()
        if not self._engine.engine.has_work or now - self._in_passing_s >= IN_PASSING_S:
            self._in_passing_s = now
            self._measure(version)

    def _measure(self, version: AdapterVersion) -> None:
        """Warns when the version changes nothing or too much."""
        if version.digest in self._known:
            return
        try:
            effect = self._engine.engine.measure_effect(version.digest)
        except Exception:  # the adapter's own requests will say so to those who ask
            log.exception("the effect of %s cannot be measured", version)
            return
        if effect is not None:
            self._known[version.digest] = effect
            if effect.warning:
                log.warning("adapter %s %s", version, effect.warning)
