"""/v1/adapters: versions, where they sit, and what changes that. The rules are serving/lifecycle.py's."""

import asyncio
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from adapters.archive import gather_adapter, unpack_adapter
from adapters.manifest import AdapterVersion
from adapters.settings import Settings
from serving.api.adapter_schemas import PublishRequest, RollbackRequest
from serving.api.auth import Keys
from serving.api.uploads import receive_form
from serving.files import FileStore
from serving.lifecycle import AdapterInfo, AdapterLifecycle, Published, VersionInfo, require_under

_FORM = {"file": {"type": "string", "format": "binary"}, "name": {"type": "string"}, "notes": {"type": "string"}}
_FORM_OR_JSON = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": _FORM, "required": ["file", "name"]}},
            "application/json": {"schema": PublishRequest.model_json_schema()},
        },
    }
}


def adapters_router(lifecycle: AdapterLifecycle, files: FileStore, settings: Settings, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(keys.require_admin)])

    @router.get("/v1/adapters", response_model=None)
    async def list_adapters() -> Response:
        adapters = await asyncio.to_thread(lifecycle.all)  # reads the disk for every version
        figures = asdict(lifecycle.figures)
        return JSONResponse({"object": "list", "data": [_card(adapter) for adapter in adapters], "bank": figures})

    @router.get("/v1/adapters/{name}")
    async def get_adapter(name: str) -> dict[str, Any]:
        return _card(await asyncio.to_thread(lifecycle.get, name))

    @router.post("/v1/adapters", response_model=None, status_code=201, openapi_extra=_FORM_OR_JSON)
    async def publish(request: Request) -> Response:
        """A form with the adapter's files or one archive, or JSON that says where they are: `file_id` of an upload,
        or `path` of a directory under a root."""
        with files.workspace() as workspace:
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                form = await receive_form(request, workspace)
                form.require_only({"name", "notes"}, {"file", "files", "files[]"})
                name, notes = form.text("name"), form.text("notes", "")
                source = workspace / "adapter"
                source.mkdir()
                sent = [(file.filename, file.path) for file in form.files]
                gather = partial(gather_adapter, limit=settings.max_upload_bytes, place=Path.rename)
                left_out = await asyncio.to_thread(gather, sent, source)
                param = "file"
            else:
                body = await _json_body(request)
                param = "path" if body.file_id is None else "file_id"
                name, notes, left_out = body.name, body.notes, []
                if body.file_id is not None:
                    archive = files.path(body.file_id, "adapter")
                    source = workspace / "adapter"
                    source.mkdir()
                    left_out = (
                        await asyncio.to_thread(unpack_adapter, archive, source, limit=settings.max_upload_bytes)
                    ).left_out
                else:
                    roots = [settings.root, *settings.adapter_roots]
                    source = require_under(Path(body.path or ""), roots, param="path")
            published = await lifecycle.publish(source, name, notes=notes, param=param)
        return JSONResponse(_published(published, left_out, notes), 201 if published.new else 200)

    @router.post("/v1/adapters/{name}/rollback")
    async def rollback(name: str, body: RollbackRequest | None = None) -> dict[str, Any]:
        await lifecycle.rollback(name, body.version if body else None)
        return _card(await asyncio.to_thread(lifecycle.get, name))

    @router.post("/v1/adapters/{reference}/pin")
    async def pin(reference: str) -> dict[str, Any]:
        return await state(await lifecycle.pin(reference))

    @router.post("/v1/adapters/{reference}/unpin")
    async def unpin(reference: str) -> dict[str, Any]:
        return await state(lifecycle.unpin(reference))

    @router.post("/v1/adapters/{reference}/warm")
    async def warm(reference: str) -> dict[str, Any]:
        return await state(await lifecycle.warm(reference))

    @router.delete("/v1/adapters/{reference}")
    async def delete(reference: str, force: bool = False) -> dict[str, Any]:
        """A whole adapter (`name`) or one version (`name@3`)."""
        gone, freed = await lifecycle.remove(reference, force=force)
        versions = [str(version) for version in gone]
        return {"id": reference, "object": "adapter", "deleted": True, "versions": versions, "bytes_freed": freed}

    async def state(version: AdapterVersion) -> dict[str, Any]:
        info = await asyncio.to_thread(lifecycle.get, version.name)
        return next(_version_card(one) for one in info.versions if one.id == str(version))

    return router


async def _json_body(request: Request) -> PublishRequest:
    try:
        return PublishRequest.model_validate_json(await request.body())
    except ValidationError as error:
        problems = [problem | {"loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from error


def _published(published: Published, left_out: list[str], notes: str) -> dict[str, Any]:
    version, effect = published.version, published.effect
    if published.new:
        said = f"published as {version}"
    else:
        said = f"{version} has the same digest; no new version was made{', and it has the new notes' if notes else ''}"
    return {
        "id": str(version),
        "object": "adapter.version",
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "new": published.new,
        "message": said,
        "warning": f"{version} {effect.warning}" if effect and effect.warning else None,
        "left_out": [name.encode("utf-8", "backslashreplace").decode() for name in left_out],
    }


def _card(adapter: AdapterInfo) -> dict[str, Any]:
    """The current version's state on top; all versions below."""
    now = _version_card(adapter.now) if adapter.now else {}
    return {
        "id": adapter.name,
        "object": "adapter",
        "current": adapter.current,
        "source": "path" if adapter.attached else "store",
        **{key: now.get(key) for key in ("digest", "status", "pinned", "leases", "bytes_in_memory", "effect")},
        "versions": [_version_card(version) for version in adapter.versions],
    }


def _version_card(version: VersionInfo) -> dict[str, Any]:
    return {"object": "adapter.version"} | asdict(version)
