"""SlotBook: which adapters running sequences use, and who gets a slot when all are taken.

The bank copies weights and evicts what nobody uses; here is decided whose turn it is."""

from collections import Counter
from collections.abc import Set

from serving.engine.bank import AdapterBank


class SlotBook:
    def __init__(self, bank: AdapterBank):
        self.bank = bank
        self._users: Counter[str] = Counter()  # digest → running sequences; never 0
        self.claimed: frozenset[str] | None = None  # adapters for which slots are being emptied
        self._closing: set[str] = set()

    @property
    def in_use(self) -> Set[str]:
        return self._users.keys()

    def ready(self) -> Set[str]:
        """Adapters in slots, with which a request can start at once."""
        return self.bank.active - self._closing

    def has_room(self, adapters: frozenset[str]) -> bool:
        """Whether slots can be had for `adapters` now, beside those claimed by somebody else."""
        return self.bank.can_activate(adapters | (self.claimed or frozenset()), self.in_use)

    def claim(self, adapters: frozenset[str]) -> None:
        """Keep the next slots for `adapters`: those that would have to go, fewest users first, take no new requests
        until `adapters` has been served. One claim at a time; others claim after it."""
        if self.claimed is not None or not self.bank.can_activate(adapters, ()):
            return
        closing: set[str] = set()
        for digest, _ in reversed(self._users.most_common()):
            if self.bank.can_activate(adapters, self.in_use - closing):
                break
            if digest not in adapters:
                closing.add(digest)
        self.claimed, self._closing = adapters, closing

    def drop_claim(self, adapters: frozenset[str]) -> None:
        if adapters == self.claimed:
            self.claimed, self._closing = None, set()

    def take(self, adapters: frozenset[str]) -> None:
        """A sequence starts: bring its adapters into slots. Raises Unavailable when one was freed meanwhile."""
        self.bank.activate(adapters, self.in_use)
        self._users.update(adapters)
        self.drop_claim(adapters)

    def give_back(self, adapters: frozenset[str]) -> None:
        """A sequence has stopped. Its adapters stay in their slots until those are needed."""
        self._users -= Counter(adapters)
