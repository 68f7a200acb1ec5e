"""Files that callers sent: `<uploads>/file-…/` holds the content as it came and what is known of it. Ids are made here,
and a path is only ever made of an id; the name a file came under is for people."""

import re
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel

from adapters.errors import Invalid, NotFound
from adapters.workspace import sweep, workspace

Sent = Literal["adapter", "fine-tune"]  # what callers may upload
Purpose = Literal[Sent, "fine-tune-results"]
PURPOSES = get_args(Sent)
_ID = re.compile(r"file-[0-9a-f]{24}")
_CONTENT = "content"
_META = "file.json"
MAX_FILENAME = 255


class StoredFile(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileStore:
    def __init__(self, root: Path):
        self.root = root
        sweep(root)

    def workspace(self) -> AbstractContextManager[Path]:
        """A directory for what is arriving; gone afterwards, whatever happened."""
        return workspace(self.root)

    def add(self, received: Path, filename: str, purpose: str) -> StoredFile:
        """Take over the file `received`, which lies in a workspace. Invalid for another purpose."""
        if purpose not in PURPOSES:
            raise Invalid(
                f"purpose '{purpose[:40]}' is not supported; send one of {', '.join(PURPOSES)}", param="purpose"
            )
        return self.keep(received, filename, purpose)  # type: ignore[arg-type]

    def keep(self, received: Path, filename: str, purpose: Purpose) -> StoredFile:
        """As `add`, also for files made here."""
        stored = StoredFile(
            id=f"file-{uuid.uuid4().hex[:24]}",
            bytes=received.stat().st_size,
            created_at=int(time.time()),
            filename=plain_filename(filename),
            purpose=purpose,
        )
        whole = received.parent / stored.id
        whole.mkdir()
        received.rename(whole / _CONTENT)
        (whole / _META).write_text(stored.model_dump_json(), encoding="utf-8")
        whole.rename(self.root / stored.id)
        return stored

    def all(self, purpose: str | None = None) -> list[StoredFile]:
        """Newest first."""
        found = [self.get(path.name) for path in self.root.glob("file-*") if (path / _META).is_file()]
        wanted = [file for file in found if purpose in (None, file.purpose)]
        return sorted(wanted, key=lambda file: (file.created_at, file.id), reverse=True)

    def get(self, file_id: str) -> StoredFile:
        try:
            return StoredFile.model_validate_json((self._directory(file_id) / _META).read_bytes())
        except FileNotFoundError:
            raise self._unknown(file_id) from None

    def path(self, file_id: str, purpose: Purpose | None = None) -> Path:
        """Where the content is. Invalid when the file came for another purpose."""
        stored = self.get(file_id)
        if purpose not in (None, stored.purpose):
            raise Invalid(f"{file_id} was uploaded with purpose '{stored.purpose}', not '{purpose}'", param="file_id")
        return self._directory(file_id) / _CONTENT

    def delete(self, file_id: str) -> StoredFile:
        stored = self.get(file_id)
        with self.workspace() as workspace:  # at once for everybody who looks
            try:
                self._directory(file_id).rename(workspace / "deleted")
            except FileNotFoundError:  # somebody else was faster
                raise self._unknown(file_id) from None
        return stored

    def _directory(self, file_id: str) -> Path:
        if not _ID.fullmatch(file_id):
            raise self._unknown(file_id)
        return self.root / file_id

    def _unknown(self, file_id: str) -> NotFound:
        shown = file_id.encode("ascii", "backslashreplace").decode()[:80]
        return NotFound(f"file '{shown}' does not exist", param="file_id")


def plain_filename(name: str) -> str:
    """The last part of a name that somebody sent, fit to be shown and to be sent back."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(character for character in last if character.isprintable())
    return kept[:MAX_FILENAME] or "file"
