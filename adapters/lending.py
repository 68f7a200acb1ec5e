"""The frozen weights of a server's base, lent to training processes of the same machine: on a GPU by CUDA's handles,
what lies in host memory through one shared file. Neither side copies a weight.

A server listens on a Unix socket, which only its own user may open, under `<home>/lenders/`. Who connects says what it
needs; if that is what the server has, it gets a description of every tensor, and holds the weights for as long as the
connection stands. Both ends notice at once when the other ends: the borrower must stop then, because memory that was
lent is gone with its owner. What is sent is JSON: nothing that is received is ever executed."""

import array
import json
import logging
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from adapters.errors import BianlianError

_FORMAT = 1
_LENGTH = struct.Struct("<Q")
_LONGEST = 64 << 20  # bytes of a description
_ALIGNMENT = 64  # bytes
_HANDSHAKE_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoanTerms:
    """What must be the same for a borrower to compute with the lender's weights."""

    fingerprint: str
    dtype: str
    quantize: str
    device: str
    format: int = _FORMAT


def terms_of(fingerprint: str, dtype: torch.dtype, quantize: str, device: torch.device) -> LoanTerms:
    # Processes may number the same GPU differently.
    where = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type
    return LoanTerms(fingerprint, str(dtype), quantize, where)


class Lender:
    """Lends `weights` until it is closed; they must not change. OSError when the socket cannot be made."""

    def __init__(self, home: Path, terms: LoanTerms, weights: Mapping[str, Tensor]):
        self.terms = terms
        self._weights = {name: weight.detach().as_subclass(Tensor) for name, weight in weights.items()}
        self._host = _HostCopy([weight for weight in self._weights.values() if weight.device.type == "cpu"])
        self._borrowers: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._path = _directory(home) / f"{os.getpid()}.sock"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.fchmod(self._socket.fileno(), 0o600)  # the file gets it as it is made
        with _reachable(self._path) as address:
            self._socket.bind(address)
        self._socket.listen()
        threading.Thread(target=self._accept, name="lender", daemon=True).start()

    @property
    def borrowers(self) -> int:
        return len(self._borrowers)

    def close(self) -> None:
        """Nothing more is lent, and all who have borrowed know it at once."""
        self._path.unlink(missing_ok=True)
        _hang_up(self._socket)
        with self._lock:
            for connection in self._borrowers:
                _hang_up(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._lend, args=(connection,), name="borrower", daemon=True).start()

    def _lend(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(_HANDSHAKE_S)
                asked = _receive(connection)
                if asked != asdict(self.terms):
                    _send(connection, {"refused": f"this server has {asdict(self.terms)}"})
                    return
                with self._lock:
                    self._borrowers.add(connection)
                try:
                    described = {name: _describe(weight, self._host.starts) for name, weight in self._weights.items()}
                except RuntimeError as error:  # memory that CUDA cannot share, as PyTorch's expandable segments
                    _send(connection, {"refused": str(error).splitlines()[0]})
                    return
                _send(connection, {"weights": described}, self._host.descriptor)
                connection.settimeout(None)
                connection.recv(1)  # until the borrower ends
            except (OSError, ValueError) as error:
                log.info("a borrower of the base is gone: %s", error)
            finally:
                with self._lock:
                    self._borrowers.discard(connection)


class _HostCopy:
    """Host tensors in one anonymous file, which others can map."""

    def __init__(self, tensors: list[Tensor]):
        self.starts: dict[tuple[int, int], int] = {}  # address and bytes → first byte in the file
        size = 0
        for tensor in tensors:
            self.starts[tensor.data_ptr(), tensor.nbytes] = size
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.descriptor = os.memfd_create("bianlian-base", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, max(size, 1))
        with mmap.mmap(self.descriptor, max(size, 1)) as pages:
            for tensor in tensors:
                start = self.starts[tensor.data_ptr(), tensor.nbytes]
                flat = tensor.contiguous().reshape(-1).view(torch.uint8)
                pages[start : start + tensor.nbytes] = flat.numpy().tobytes()

    def __del__(self) -> None:
        os.close(self.descriptor)


class BaseLost(BianlianError):
    """The server that lent the base has ended."""

    code = "base_lost"


class Loan:
    """Borrowed weights, by name, until `close`. `lost` is set when the lender has ended: nothing may be computed with
    them from then on."""

    def __init__(self, connection: socket.socket, weights: dict[str, Tensor]):
        self.weights = weights
        self.lost = threading.Event()
        self._connection = connection
        self._closed = False
        threading.Thread(target=self._watch, name="loan", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        self.weights = {}
        _hang_up(self._connection)

    def _watch(self) -> None:
        with suppress(OSError):
            self._connection.recv(1)  # nothing comes but the end
        if not self._closed:
            self.lost.set()


def borrow(home: Path, terms: LoanTerms, device: torch.device) -> Loan | None:
    """The weights of a server of this home that has just these; None when there is none."""
    for path in sorted(_directory(home).glob("*.sock")):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_HANDSHAKE_S)
            with _reachable(path) as address:
                connection.connect(address)
            _send(connection, asdict(terms))
            reply, descriptor = _receive_with_descriptor(connection)
            if "weights" not in reply:
                log.info("%s does not lend its base: %s", path, reply.get("refused"))
                connection.close()
                continue
            connection.settimeout(None)
            return Loan(connection, _rebuild(reply["weights"], descriptor, device))
        except ConnectionRefusedError:  # its server was killed
            path.unlink(missing_ok=True)
            connection.close()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            log.warning("the base cannot be borrowed from %s: %s", path, error)
            connection.close()
    return None


# --- tensors as JSON ---


def _describe(tensor: Tensor, starts: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    about = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.device.type == "cpu":
        return about | {"start": starts[tensor.data_ptr(), tensor.nbytes]}
    from torch.multiprocessing.reductions import reduce_tensor

    # Anew for every borrower: PyTorch counts who holds the memory by handle.
    _, (_, size, stride, offset, _, _, _, handle, nbytes, start, _, counter, counter_start, event, wait) = (
        reduce_tensor(tensor)
    )
    return about | {
        "stride": list(stride),
        "offset": offset,
        "handle": handle.hex(),
        "storage": [nbytes, start],
        "counter": [counter.hex(), counter_start],
        "event": [event.hex() if event else "", wait],
    }


def _rebuild(described: Mapping[str, Any], descriptor: int | None, device: torch.device) -> dict[str, Tensor]:
    host: Tensor | None = None
    if descriptor is not None:
        # Ours alone to change; the pages are the lender's until then.
        size = os.fstat(descriptor).st_size
        host = torch.frombuffer(mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)
        os.close(descriptor)
    weights = {}
    for name, about in described.items():
        dtype, shape = getattr(torch, about["dtype"]), about["shape"]
        if "handle" in about:
            weights[name] = _rebuild_cuda(about, dtype, shape, device)
            continue
        assert host is not None
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        weights[name] = host[about["start"] : about["start"] + nbytes].view(dtype).view(shape)
    return weights


def _rebuild_cuda(about: Mapping[str, Any], dtype: torch.dtype, shape: list[int], device: torch.device) -> Tensor:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    (nbytes, start), (counter, counter_start), (event, wait) = about["storage"], about["counter"], about["event"]
    tensor = rebuild_cuda_tensor(
        Tensor,
        torch.Size(shape),
        tuple(about["stride"]),
        about["offset"],
        torch.storage.TypedStorage,
        dtype,
        device.index if device.index is not None else torch.cuda.current_device(),
        bytes.fromhex(about["handle"]),
        nbytes,
        start,
        False,
        bytes.fromhex(counter),
        counter_start,
        bytes.fromhex(event),
        wait,
    )
    return cast(Tensor, tensor)


# --- the socket ---


def _directory(home: Path) -> Path:
    return home / "lenders"


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for the socket at `path`, which may be longer than the 108 bytes that an address may have."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """The length, and with it the file if there is one; then JSON."""
    body = json.dumps(message).encode()
    rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    connection.sendmsg([_LENGTH.pack(len(body))], rights)
    connection.sendall(body)


def _receive(connection: socket.socket) -> dict[str, Any]:
    message, descriptor = _receive_with_descriptor(connection)
    if descriptor is not None:
        os.close(descriptor)
        raise ValueError("a file came that nobody asked for")
    return message


def _receive_with_descriptor(connection: socket.socket) -> tuple[dict[str, Any], int | None]:
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    head += _receive_exactly(connection, _LENGTH.size - len(head))
    (length,) = _LENGTH.unpack(head)
    if length > _LONGEST:
        raise ValueError(f"a message of {length} bytes")
    message = json.loads(_receive_exactly(connection, length))
    if not isinstance(message, dict):
        raise ValueError("the message is no object")
    return message, descriptors[0] if descriptors else None


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        if not (part := connection.recv(min(count - len(received), 1 << 20))):
            raise ConnectionError("the other side has ended")
        received += part
    return bytes(received)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it was not connected any more
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
