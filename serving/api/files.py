"""/v1/files: upload, list, get, content, delete, as OpenAI has them. What a file is for decides who reads it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse

from adapters.errors import Invalid
from serving.api.auth import Keys
from serving.api.paging import page
from serving.api.uploads import receive_form
from serving.files import PURPOSES, FileStore, StoredFile

MAX_LISTED = 10_000

_PARTS = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": list(PURPOSES)}}
_SCHEMA = {"type": "object", "properties": _PARTS, "required": ["file", "purpose"]}
_FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


def files_router(files: FileStore, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(keys.require_admin)])

    @router.post("/v1/files", openapi_extra=_FORM)
    async def upload(request: Request) -> StoredFile:
        """One file, in the form field `file`, with its `purpose`."""
        with files.workspace() as workspace:
            form = await receive_form(request, workspace)
            form.require_only({"purpose"}, {"file"})
            if len(form.files) != 1:
                raise Invalid(f"send one file in the form field 'file', not {len(form.files)}", param="file")
            return files.add(form.files[0].path, form.files[0].filename, form.text("purpose"))

    @router.get("/v1/files")
    async def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: int = Query(default=MAX_LISTED, ge=1, le=MAX_LISTED),
        order: str = Query(default="desc", pattern="^(asc|desc)$"),
    ) -> dict[str, Any]:
        found = await asyncio.to_thread(files.all, purpose)
        if order == "asc":
            found.reverse()
        return page(found, lambda file: file.id, after=after, limit=limit)

    @router.get("/v1/files/{file_id}")
    async def get_file(file_id: str) -> StoredFile:
        return files.get(file_id)

    @router.get("/v1/files/{file_id}/content", response_class=FileResponse)
    async def content(file_id: str) -> FileResponse:
        stored = files.get(file_id)
        # As an attachment of no particular type: a browser is not to show what somebody sent.
        return FileResponse(files.path(file_id), media_type="application/octet-stream", filename=stored.filename)

    @router.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        await asyncio.to_thread(files.delete, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router
