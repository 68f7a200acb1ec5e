"""ResponseStore: answers that /v1/responses kept, so that the next request can go on from them.

In memory: a restart forgets them, and each key keeps its latest only. Every key sees its own."""

from collections import OrderedDict
from dataclasses import dataclass

MAX_KEYS = 64  # the one that asked longest ago is forgotten first
MAX_RESPONSES = 1024  # of one key
MAX_BYTES = 8 << 20  # of one key's responses and their conversations


@dataclass(frozen=True)
class StoredResponse:
    body: bytes  # as it was sent
    asked: tuple[bytes, ...]  # the items it answers, those of earlier responses included and the instructions not
    answered: tuple[bytes, ...]  # the items of the answer, as far as one can go on from them

    @property
    def nbytes(self) -> int:
        return len(self.body) + sum(map(len, (*self.asked, *self.answered)))


class ResponseStore:
    """Belongs to the event loop."""

    def __init__(self, *, max_keys: int = MAX_KEYS, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES):
        self._max_keys = max_keys
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()

    def get(self, key: str, response_id: str) -> StoredResponse | None:
        shelf = self._shelves.get(key)
        return shelf.responses.get(response_id) if shelf else None

    def put(self, key: str, response_id: str, response: StoredResponse) -> None:
        """Keep a response; the oldest make room for it."""
        shelf = self._shelves.setdefault(key, _Shelf())
        self._shelves.move_to_end(key)
        shelf.add(response_id, response)
        while len(shelf.responses) > self._max_responses or shelf.nbytes > self._max_bytes:
            shelf.remove(next(iter(shelf.responses)))
        while len(self._shelves) > self._max_keys:
            self._shelves.popitem(last=False)

    def delete(self, key: str, response_id: str) -> bool:
        """False when there was none. Those that go on from it have the conversation themselves."""
        if self.get(key, response_id) is None:
            return False
        self._shelves[key].remove(response_id)
        return True


class _Shelf:
    """One key's responses, the oldest first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.nbytes = 0

    def add(self, response_id: str, response: StoredResponse) -> None:
        self.responses[response_id] = response
        self.nbytes += response.nbytes

    def remove(self, response_id: str) -> None:
        self.nbytes -= self.responses.pop(response_id).nbytes
