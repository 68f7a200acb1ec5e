"""Archives of adapters: what is in them is known before a byte is written, and nothing else is written ever."""

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.archive import choose_files, unpack_adapter
from adapters.errors import Invalid

LIMIT = 1 << 20
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GOOD = {CONFIG: b"{}", WEIGHTS: b"w" * 100}

Write = Callable[[Path, list[tuple[str, bytes]]], Path]


def write_zip(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def write_tar(path: Path, entries: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def write_tar_gz(path: Path, entries: list[tuple[str, bytes]]) -> Path:
    return write_tar(path, entries, "w:gz")


WRITERS = [write_zip, write_tar, write_tar_gz]


def unpack(archive: Path, tmp_path: Path, *, limit: int = LIMIT) -> Path:
    target = tmp_path / "out"
    target.mkdir()
    unpack_adapter(archive, target, limit=limit)
    return target


def refused(archive: Path, tmp_path: Path, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        unpack(archive, tmp_path)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]
    assert not outside, "nothing was written"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("folder", ["", "huanhuan/", "./"])
def test_the_adapters_files_come_out_and_others_are_named(write: Write, folder: str, tmp_path: Path) -> None:
    if folder == "./" and write is write_zip:
        folder = "deep/er/"
    entries = [(folder + name, content) for name, content in [*GOOD.items(), ("README.md", b"hello")]]
    target = tmp_path / "out"
    target.mkdir()
    contents = unpack_adapter(write(tmp_path / "a", entries), target, limit=LIMIT)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == GOOD
    assert [name.rpartition("/")[2] for name in contents.left_out] == ["README.md"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("../up.json", b"")], "not a plain relative path"),
        ([("a/../../up.json", b"")], "not a plain relative path"),
        ([("/etc/passwd", b"")], "not a plain relative path"),
        ([("C:\\up.json", b"")], "not a plain relative path"),
        ([("a\\..\\b", b"")], "not a plain relative path"),
        ([("a\nb", b"")], "not a plain relative path"),
        ([("x" * 300, b"")], "not a plain relative path"),
        ([("training_args.bin", b"")], "is a pickle"),
        ([("more.zip", b"PK")], "an archive inside"),
        ([("more.tar.gz", b"")], "an archive inside"),
        ([(CONFIG, b"{}")], "comes twice"),
        ([("other/" + CONFIG, b"{}")], "in different folders"),
        ([(f"f{number}", b"") for number in range(1000)], "more than 1000 entries"),
        ([("zeros", bytes(LIMIT + 1))], "the limit is 1048576"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_that_means_harm_is_refused_before_a_byte_is_written(
    write: Write, entries: list[tuple[str, bytes]], words: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning) if write is write_zip and words == "comes twice" else _silent():
        archive = write(tmp_path / "a", [*GOOD.items(), *entries])
    refused(archive, tmp_path, words)


def _silent() -> object:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a", [*GOOD.items()])
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo("notes.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        file.addfile(member)
    refused(archive, tmp_path, "link or device")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as file:
        for name, content in GOOD.items():
            file.writestr(name, content)
        link = zipfile.ZipInfo("notes.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    refused(tmp_path / "a", tmp_path, "link or device")


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a", [*GOOD.items(), ("notes.txt?x", b"")])
    archive.write_bytes(archive.read_bytes().replace(b"notes.txt?x", b"notes.txt\0x"))
    refused(archive, tmp_path, "not a plain relative path")


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a", [(CONFIG, b"{}"), (WEIGHTS, bytes(1 << 16))])
    data = archive.read_bytes()
    archive.write_bytes(data.replace(struct.pack("<I", 1 << 16), struct.pack("<I", 100)))
    with pytest.raises(Invalid, match="cannot be read|holds another number"):
        unpack(archive, tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 102


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_declares_the_impossible_is_refused_at_once(packed: bool, tmp_path: Path) -> None:
    member = tarfile.TarInfo(WEIGHTS)
    member.size = 1 << 60
    header = member.tobuf(tarfile.GNU_FORMAT)
    longname = tarfile.TarInfo("././@LongLink")
    longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    for content, words in ((header, "the limit is"), (longname.tobuf(tarfile.GNU_FORMAT), "larger than 1 MiB")):
        import gzip

        (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(Invalid, match=words):
            unpack_adapter(tmp_path / "a", tmp_path, limit=LIMIT)


def test_a_hundred_thousand_entries_are_not_even_listed(tmp_path: Path) -> None:
    record = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = record * 100_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    (tmp_path / "a").write_bytes(directory + end)
    refused(tmp_path / "a", tmp_path, "list of files is larger")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(300), b"\x1f\x8bxx", b"GIF89a", bytes(600)])
def test_what_is_no_archive_says_so(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(Invalid, match="cannot be read|no zip, tar"):
        unpack_adapter(tmp_path / "a", tmp_path, limit=LIMIT)


def test_loose_files_follow_the_same_rules() -> None:
    assert choose_files([f"x/{CONFIG}", f"x/{WEIGHTS}"]).chosen == {f"x/{CONFIG}": CONFIG, f"x/{WEIGHTS}": WEIGHTS}
    for names, words in (
        ([CONFIG], "is missing"),
        ([WEIGHTS], "there is none"),
        ([CONFIG, "adapter_model.bin"], "pickle"),
        ([CONFIG, f"x/{WEIGHTS}"], "is missing beside"),
        ([""], "not a plain"),
    ):
        with pytest.raises(Invalid, match=words):
            choose_files(names)


def test_an_entry_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", [*GOOD.items()])
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(""), b"")
    refused(path, tmp_path, "cannot be read|plain relative path")


def test_a_packing_that_breaks_is_refused(tmp_path: Path) -> None:
    """Each packing has its own class of error for data that is not its own."""
    for number, packing in enumerate((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w", packing) as file:
            for name, content in GOOD.items():
                file.writestr(name, content * 50)
        data = bytearray(path.read_bytes())
        start = data.index(CONFIG.encode()) + len(CONFIG)
        data[start + 4 : start + 30] = b"\xff" * 26
        path.write_bytes(data)
        target = tmp_path / f"out{number}"
        target.mkdir()
        with pytest.raises(Invalid, match="cannot be read"):
            unpack_adapter(path, target, limit=LIMIT)
