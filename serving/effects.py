"""AdapterEffects: what each adapter changes, learnt once for each digest: when an operator brings it in, or some time
after its first answer, when the engine has nothing better to do."""

import logging
from functools import partial

from adapters.manifest import AdapterVersion
from adapters.snapshots import Snapshot
from serving.async_engine import AsyncEngine
from serving.engine.effect import Effect

log = logging.getLogger(__name__)


class AdapterEffects:
    def __init__(self, engine: AsyncEngine):
        self._engine = engine
        self._known: dict[str, Effect] = {}
        self._awaited: set[str] = set()  # digests; the engine's thread alone

    def get(self, digest: str) -> Effect | None:
        return self._known.get(digest)

    async def measure(self, version: AdapterVersion) -> Effect | None:
        """What a version in memory changes, if there is room to find out now."""
        if self._engine.alive:
            await self._engine.call(partial(self._measure, version))
        return self.get(version.digest)

    def learn_later(self, version: AdapterVersion) -> None:
        """Measure when the engine is idle, unless that is known or about to be. Engine's thread."""
        if version.digest not in self._known and version.digest not in self._awaited:
            self._awaited.add(version.digest)
            self._engine.post_when_idle(partial(self._learn, version))

    def _learn(self, version: AdapterVersion) -> None:
        self._awaited.discard(version.digest)  # if it cannot be measured now, its next answer is the next occasion
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
                # The first snapshots of a run that goes well have no effect yet.
                early = isinstance(version, Snapshot) and effect.verdict == "no effect"
                log.log(logging.INFO if early else logging.WARNING, "adapter %s %s", version, effect.warning)
