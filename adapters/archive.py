"""Adapters as they are sent: loose files, or one zip or tar archive. Names, kinds, number and sizes are checked before
anything is written, and of an archive nothing is written but the files that make an adapter."""

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from adapters.errors import Invalid
from adapters.manifest import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE

MAX_ENTRIES = 1000
_CHUNK = 1 << 20
_DIRECTORY_BYTES = 1 << 20  # of a zip's list of entries, or of one header of a tar: they are read whole
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# What the standard library's readers raise at archives that are none, or that lie about themselves.
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, NotImplementedError, ValueError, LookupError, OverflowError, RuntimeError),
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


@dataclass(frozen=True)
class Contents:
    """What of the files sent makes the adapter: name as sent → name in the adapter. The rest is left out."""

    chosen: dict[str, str]
    left_out: list[str]


def choose_files(names: Iterable[str]) -> Contents:
    """The adapter's files, which lie side by side, at the top or in one folder. Invalid for a name that is no plain
    relative path or comes twice, for pickles, archives inside, and when configuration or weights are missing."""
    names = list(names)
    for name in names:
        _require_plain(name)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"'{_shown(twice)}' comes twice; send each file once", param="file")
    folders = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == CONFIG_FILE}
    if len(folders) != 1:
        found = f"{len(folders)} of them, in different folders" if folders else "none"
        raise Invalid(f"send one {CONFIG_FILE}, with {WEIGHTS_FILE} beside it; there is {found}", param="file")
    [folder] = folders
    beside = f"{folder}/" if folder else ""
    chosen = {f"{beside}{file}": file for file in ADAPTER_FILES if f"{beside}{file}" in names}
    if f"{beside}{WEIGHTS_FILE}" not in chosen:
        raise Invalid(f"{WEIGHTS_FILE} is missing beside {CONFIG_FILE}", param="file")
    return Contents(chosen, [name for name in names if name not in chosen])


def unpack_adapter(archive: Path, target: Path, *, limit: int) -> Contents:
    """Write the adapter in a zip, tar or tar.gz file into the directory `target`, which exists; at most `limit` bytes,
    counting all that the archive holds. Raises Invalid; the directory may then hold part of the adapter. Blocks."""
    with archive.open("rb") as file:
        start = file.read(262)
    try:
        if start.startswith(b"PK"):
            return _unpack_zip(archive, target, limit)
        if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
            return _unpack_tar(archive, target, limit, packed=start[257:262] != b"ustar")
    except _BROKEN as error:
        raise Invalid(f"the archive cannot be read: {error}", param="file") from error
    raise Invalid(
        "the file is no zip, tar or tar.gz archive; send one, or the adapter's files as they are", param="file"
    )


def gather_adapter(
    files: Sequence[tuple[str, Path]], target: Path, *, limit: int, place: Callable[[Path, Path], object]
) -> list[str]:
    """Bring the adapter that came as `files` (name as sent, where it lies), loose or as one archive, into the directory
    `target`, which exists; loose files by `place` (from, to). Returns the names of what else came. Raises Invalid; the
    directory may then hold part of the adapter. Blocks."""
    if len(files) == 1 and not files[0][0].lower().endswith((*PICKLES, ".json", ".safetensors")):
        return unpack_adapter(files[0][1], target, limit=limit).left_out
    contents = choose_files(name for name, _ in files)
    for name, path in files:
        if name in contents.chosen:
            place(path, target / contents.chosen[name])
    return contents.left_out


def pack_adapter(directory: Path, archive: Path, folder: str) -> None:
    """Write an adapter's files as the zip file `archive`, in one folder that plain PEFT loads. As they are: weights do
    not get smaller. Blocks."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name in ADAPTER_FILES:
            if (directory / name).is_file():
                packed.write(directory / name, f"{folder}/{name}")


def _unpack_zip(archive: Path, target: Path, limit: int) -> Contents:
    with archive.open("rb") as file, zipfile.ZipFile(_Bounded(file, archive.stat().st_size)) as opened:
        entries = opened.infolist()
        _require_count(len(entries))
        files = [entry for entry in entries if not entry.is_dir()]
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Invalid(f"'{_shown(entry.filename)}' is a link or device; send plain files", param="file")
            if entry.flag_bits & 1:
                raise Invalid(f"'{_shown(entry.filename)}' is encrypted; send it in the clear", param="file")
            if entry.orig_filename.rstrip("/") != entry.filename.rstrip("/"):
                _require_plain(entry.orig_filename)  # zipfile cuts names at NUL
            if entry.is_dir():
                _require_plain(entry.filename.rstrip("/"))
        _require_size(sum(entry.file_size for entry in files), limit)
        contents = choose_files(entry.filename for entry in files)
        for sent, name in contents.chosen.items():
            with opened.open(sent) as source:
                _copy(source, target / name, opened.getinfo(sent).file_size)
        return contents


def _unpack_tar(archive: Path, target: Path, limit: int, *, packed: bool) -> Contents:
    """Reads a packed archive twice: once to check what is in it, once for its files."""
    with ExitStack() as stack:
        opener = cast(Callable[..., IO[bytes]], gzip.open if packed else open)
        file = stack.enter_context(opener(archive, "rb"))
        # Sizes are declared; what is really unpacked on the way to the next header is bounded as well.
        bounded = _Bounded(file, limit + MAX_ENTRIES * _DIRECTORY_BYTES)
        opened = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
        files: dict[str, tarfile.TarInfo] = {}
        names, total = [], 0
        for number, member in enumerate(opened, 1):
            _require_count(number)
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.sparse:
                raise Invalid(f"'{_shown(member.name)}' is a link or device; send plain files", param="file")
            total += max(member.size, 0)
            _require_size(total, limit)
            if member.isdir():
                if member.name.rstrip("/") not in (".", ""):
                    _require_plain(member.name.removeprefix("./").rstrip("/"))
                continue
            name = member.name.removeprefix("./")
            names.append(name)
            files[name] = member
        contents = choose_files(names)
        for sent, name in contents.chosen.items():
            source = opened.extractfile(files[sent])
            assert source is not None  # it is a regular file
            _copy(source, target / name, files[sent].size)
        return contents


class _Bounded(io.RawIOBase):
    """A file that is not read in large pieces nor far ahead. Python's readers take lists of entries and long names in
    one piece, as long as the archive says they are."""

    def __init__(self, file: IO[bytes], end: int):
        self._file = file
        self._end = end

    def read(self, size: int = -1) -> bytes:
        data = b"" if size > _DIRECTORY_BYTES else self._file.read(_DIRECTORY_BYTES + 1 if size < 0 else size)
        if max(size, len(data)) > _DIRECTORY_BYTES:
            raise Invalid(f"the archive's list of files is larger than {_DIRECTORY_BYTES >> 20} MiB", param="file")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > self._end:
            raise Invalid("the archive unpacks to more than is allowed", param="file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    """Exactly `size` bytes, or Invalid."""
    copied = 0
    with target.open("wb") as file:
        while chunk := source.read(min(_CHUNK, size - copied + 1)):
            copied += len(chunk)
            if copied > size:
                break
            file.write(chunk)
    if copied != size:
        raise Invalid(f"the archive says {size} bytes for {target.name} and holds another number", param="file")


def _require_plain(name: str) -> None:
    """Invalid unless `name` is a plain relative path; also for what could run code or holds more files."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name or not name.isprintable()
    if odd or len(name) > 255:
        raise Invalid(f"'{_shown(name)}' is not a plain relative path; pack the directory again", param="file")
    if name.lower().endswith(PICKLES):
        raise Invalid(
            f"'{_shown(name)}' is a pickle, which can run code when opened; leave it out and send {WEIGHTS_FILE}",
            param="file",
        )
    if name.lower().endswith(_ARCHIVES):
        raise Invalid(f"'{_shown(name)}' is an archive inside; send the adapter's files themselves", param="file")


def _require_count(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise Invalid(f"the archive has more than {MAX_ENTRIES} entries; send the adapter's files only", param="file")


def _require_size(total: int, limit: int) -> None:
    if total > limit:
        raise Invalid(
            f"the archive unpacks to {total} bytes; the limit is {limit} (raise --max-upload)",
            param="file",
        )


def _shown(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:80]
