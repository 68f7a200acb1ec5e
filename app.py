"""The composition root: builds each service once from Settings, mounts the faces, and is the command line.

Only this file knows all packages. Heavy imports happen inside the commands that need them, so that
`bianlian COMMAND --help` answers at once."""

from __future__ import annotations

import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import adapters.cli
import serving.cli
import training.cli
from adapters.errors import BianlianError, InsufficientStorage, Invalid, Unavailable

if TYPE_CHECKING:
    from fastapi import FastAPI

    from adapters.base_model import BaseModel
    from adapters.lending import Lender
    from adapters.presence import ServerPresence
    from adapters.registry import AdapterRegistry
    from adapters.settings import Settings
    from serving.async_engine import AsyncEngine
    from serving.chat import ChatService
    from serving.database.database import Database

STORE_POLL_S = 1.0  # how soon the memory of a version replaced on disk is freed; new requests see it at once
STALLED_MS = 90_000  # longer than a stream waits for its reader
LOOPBACK = ("127.0.0.1", "localhost", "::1")

DEMO_PERSONA = "wukong"
DEMO_QUESTIONS = ("你是谁？", "我今天心情不好。", "你师父是谁？")
DEMO_SEED = 7

log = logging.getLogger(__name__)
cli = typer.Typer(no_args_is_help=True, add_completion=False, help="One base model, many faces.")


@dataclass
class Services:
    """Everything that runs, built once."""

    settings: Settings
    base: BaseModel
    registry: AdapterRegistry
    engine: AsyncEngine
    chat: ChatService
    database: Database
    presence: ServerPresence | None  # None: the home takes no files, so training there will not step back
    lender: Lender | None  # None: nobody else could compute with the weights as they lie here

    def close(self) -> None:
        if self.lender:
            self.lender.close()
        self.engine.close()
        if self.presence:
            self.presence.close()
        self.database.close()


def build_services(settings: Settings, base: BaseModel | None = None) -> Services:
    """Load the base and start the engine. Raises BianlianError for a base or adapter that cannot be served."""
    from serving.database.database import Database
    from serving.own_thread import run_on_own_thread

    database = Database(settings.database_url)
    try:
        return run_on_own_thread(_build_services, settings, base, database)
    except BaseException:
        database.close()
        raise


def _build_services(settings: Settings, base: BaseModel | None, database: Database) -> Services:
    import torch

    from adapters.base_model import load_base, pick_device
    from adapters.lending import Lender, terms_of
    from adapters.peft_config import read_config
    from adapters.presence import ServerPresence
    from adapters.registry import AdapterRegistry
    from adapters.renderer import ChatRenderer
    from adapters.samples import offer_samples
    from adapters.store import AdapterStore
    from serving.async_engine import AsyncEngine
    from serving.chat import ChatService
    from serving.engine.engine import Engine

    named = [_named_path(text) for text in settings.adapter]
    for _, path in named:
        read_config(path)  # a wrong path is said before the base is loaded
    if base is None:
        on_cpu = pick_device(settings.device).type == "cpu"  # there the engine quantises, as it packs the weights
        quantize = "none" if on_cpu else settings.quantize
        base = load_base(settings.base, device=settings.device, dtype=settings.dtype, quantize=quantize)
    store = AdapterStore(settings.store)
    store.sweep()
    registry = AdapterRegistry(store, base.name, base.fingerprint)
    engine = AsyncEngine(Engine(base, settings), max_waiting=settings.max_waiting)
    chat = ChatService(base, registry, engine, ChatRenderer(base.tokenizer, base.stop_token_ids))
    for name, path in named:
        engine.engine.bank.check(path)
        engine.engine.bank.warm(registry.attach(name, path, replace=True))
    offer_samples(store, base.fingerprint)
    if settings.threads:
        engine.post(partial(torch.set_num_threads, settings.threads))  # on its own thread, where it counts
    presence = None
    try:
        presence = ServerPresence(settings.root)
        engine.on_awaited = presence.note
    except OSError as error:
        log.warning("training beside this server will not step back for it: %s", error)
    lender = None
    if base.device.type == "cuda" and engine.engine.weights:  # on a CPU, who trains maps the base's files
        try:
            terms = terms_of(base.fingerprint, base.dtype, base.quantize, base.device)
            lender = Lender(settings.root, terms, engine.engine.weights)
        except OSError as error:
            log.warning("training beside this server will hold a base of its own: %s", error)
    engine.start()
    return Services(settings, base, registry, engine, chat, database, presence, lender)


def build_app(services: Services) -> FastAPI:
    """The HTTP application: API, then the UI at `/` unless it is off."""
    import time

    from fastapi import Depends, FastAPI
    from fastapi.routing import iter_route_contexts
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from serving.api.adapters import adapters_router
    from serving.api.aliases import aliases_router
    from serving.api.auth import Keys
    from serving.api.compare import compare_router
    from serving.api.completions import completions_router
    from serving.api.declared import ERRORS
    from serving.api.embeddings import embeddings_router
    from serving.api.errors import install_error_handlers
    from serving.api.files import files_router
    from serving.api.limits import BodyLimit
    from serving.api.models import models_router
    from serving.api.operations import operations_router
    from serving.api.paths import PathSpellings, unknown_router
    from serving.api.probe import probe_router
    from serving.api.request_log import RequestLog
    from serving.api.responses import responses_router
    from serving.api.text_completions import text_completions_router
    from serving.api.tokens import tokens_router
    from serving.api.usage import RateLimitHeaders, usage_router
    from serving.api.votes import votes_router
    from serving.conversations import Conversations
    from serving.files import FileStore
    from serving.history import History
    from serving.keys import KeyStore
    from serving.lifecycle import AdapterLifecycle
    from serving.metrics import Metrics
    from serving.probe import Prober
    from serving.recent import Recent
    from serving.response_store import ResponseStore
    from serving.usage import UsageBook
    from serving.votes import VoteStore
    from serving.watch import WATCH_POLL_S, DirectoryWatcher, publish_found
    from training.api.fine_tuning import fine_tuning_router
    from training.jobs.figures import JobFigures
    from training.jobs.fine_tuning import FineTuning, bases_for
    from training.jobs.queue import JobQueue, Supervisor

    settings, chat, database = services.settings, services.chat, services.database
    queue = JobQueue(settings.root)
    supervisor = Supervisor(
        queue,
        max_running=settings.max_running_jobs,
        device=settings.device,
        snapshot_runs=settings.snapshot_runs,
        in_use=lambda snapshot: services.registry.leases(snapshot) > 0,
    )
    key_store = KeyStore(database)
    keys, metrics = Keys(settings, key_store, chat.limits), Metrics(chat, [JobFigures(queue)])
    usage, votes = UsageBook(database, chat.usage), VoteStore(database)
    conversations = Conversations(chat, History(database))
    lifecycle, files, prober = AdapterLifecycle(chat), FileStore(settings.uploads), Prober(chat)
    recent = Recent(chat, lambda: metrics.http.refused)
    bases = bases_for(services.base.name, settings.base)
    tuning = FineTuning(queue, files, bases, partial(services.registry.require_free, param="suffix"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        import asyncio

        async def watch_store() -> None:
            while True:
                await asyncio.sleep(STORE_POLL_S)
                try:
                    await asyncio.to_thread(services.registry.refresh)
                except OSError:  # the store's disk is away for a moment; requests say so themselves
                    log.warning("the adapter store cannot be read", exc_info=True)

        async def watch_directories() -> None:
            watcher = DirectoryWatcher([root.expanduser() for root in settings.watch])
            while True:
                for directory in await asyncio.to_thread(watcher.poll, time.monotonic()):
                    await publish_found(lifecycle, directory, directory.parent)
                await asyncio.sleep(WATCH_POLL_S)

        tasks = [asyncio.create_task(watch_store()), asyncio.create_task(usage.keep_writing())]
        tasks.append(asyncio.create_task(recent.watch()))
        if settings.max_running_jobs:
            tasks.append(asyncio.create_task(supervisor.watch()))
        tasks.append(asyncio.create_task(prober.watch()))
        if settings.watch:
            tasks.append(asyncio.create_task(watch_directories()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await conversations.close()
            await asyncio.to_thread(services.engine.close)  # answers that still run end, and are counted
            try:
                await asyncio.to_thread(usage.flush)
            finally:
                await asyncio.to_thread(services.close)

    app = FastAPI(
        title="Bianlian", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS
    )
    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_upload=settings.max_upload_bytes)
    app.add_middleware(PathSpellings)
    app.add_middleware(RateLimitHeaders, limits=chat.limits)
    # With no origins too: Gradio would otherwise echo any, with credentials.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],  # the SDK for browsers sends a dozen of its own
        allow_private_network=bool(settings.cors_origins),  # a named page may be elsewhere, this server is at home
        expose_headers=["*"],
    )
    if settings.host in LOOPBACK and not keys.configured_now():
        # A page elsewhere whose name is made to resolve to this machine must not reach an open API.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"], www_redirect=False)
    user = [Depends(keys.require_user)]
    app.include_router(completions_router(chat), dependencies=user)
    app.include_router(text_completions_router(chat), dependencies=user)
    app.include_router(responses_router(chat, ResponseStore()), dependencies=user)
    app.include_router(embeddings_router(chat), dependencies=user)
    app.include_router(tokens_router(chat), dependencies=user)
    app.include_router(compare_router(chat, votes), dependencies=user)
    app.include_router(models_router(chat, settings, keys, int(time.time())), dependencies=user)
    app.include_router(usage_router(usage), dependencies=user)
    app.include_router(votes_router(votes), dependencies=user)
    app.include_router(adapters_router(lifecycle, files, settings, keys), dependencies=user)
    app.include_router(aliases_router(chat, keys), dependencies=user)
    app.include_router(files_router(files, keys), dependencies=user)
    app.include_router(fine_tuning_router(tuning), dependencies=[Depends(keys.require_admin)])
    app.include_router(probe_router(prober, keys))
    app.include_router(operations_router(chat, metrics, keys))

    @app.get("/openapi.json", include_in_schema=False, dependencies=user)
    async def openapi() -> dict[str, object]:
        return app.openapi()

    app.include_router(unknown_router([*app.routes]))

    endpoints = {route.path for route in iter_route_contexts(app.routes) if route.path}
    if settings.ui:
        # The page takes every address that is left: what is declared after it answers 404.
        from serving.ui.quick_import import import_gradio

        import_gradio()
        from serving.own_thread import on_own_thread
        from serving.ui.login import Sessions
        from serving.ui.mount import mount_page
        from serving.ui.studio import Studio, studio_tabs
        from training.ui.services import TrainServices
        from training.ui.tab import training_tab

        sessions = Sessions(keys)
        training_face = TrainServices(
            tuning, settings.device, sessions.viewer, prober, lifecycle.publish_snapshot, on_own_thread
        )
        studio = Studio(
            settings=settings,
            chat=chat,
            database=database,
            viewer_of=sessions.viewer,
            log_in=sessions.promote,
            keys=key_store,
            usage=usage,
            votes=votes,
            conversations=conversations,
            files=files,
            lifecycle=lifecycle,
            recent=recent,
            http=metrics.http,
        )
        tabs = studio_tabs(studio, training_tab(training_face))
        app = mount_page(app, tabs, sessions)
    app.add_middleware(RequestLog, http=metrics.http, endpoints=endpoints)  # last, which is outermost
    return app


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send small writes at once. OSError when the port is taken."""
    listening = socket.create_server((host, port), reuse_port=False)
    # asyncio does this itself for sockets made with proto=IPPROTO_TCP, which create_server's are not. Without it the
    # kernel holds every small write (an event, a body after its headers) until the last is acknowledged: 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # What waits for a client that reads nothing any more would keep its connection, and our memory, as long as the
        # client likes.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return listening


def run_server(services: Services) -> None:
    """Serve until interrupted; running answers get `drain_seconds` to finish, new ones are refused meanwhile."""
    import uvicorn

    from serving.api.server import DrainingServer

    settings = services.settings
    app = build_app(services)
    # Its loggers are ours to show; RequestLog writes what its access log would.
    config = uvicorn.Config(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
    try:
        listening = listen(settings.host, settings.port)
    except OSError as error:
        services.close()
        raise Unavailable(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another --port"
        ) from error
    host, port = listening.getsockname()[:2]
    typer.echo(f"Bianlian serves {services.base.name} on http://{host}:{port}  (API at /v1, Ctrl-C stops)")

    # What is loaded now stays. A full collection would look through all of it again and again: 0.2 to 0.5 s in which no
    # thread runs.
    gc.collect()
    gc.freeze()
    with suppress(KeyboardInterrupt):
        DrainingServer(config, services.engine, settings.drain_seconds).run(sockets=[listening])


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise Invalid(f"--adapter takes NAME=PATH, not '{text}'", param="adapter")
    return name, Path(path).expanduser()


def _require_key_if_exposed(settings: Settings) -> None:
    """Invalid when people elsewhere, or pages from anywhere, could use a server without keys."""
    if settings.host not in LOOPBACK:
        exposed, param = f"host {settings.host} is reachable from other machines", "host"
    elif "*" in settings.cors_origins:
        exposed, param = "with '*' every page anybody here opens could load and unload adapters", "cors_origins"
    else:
        return
    if settings.api_key or settings.admin_key:
        return
    from serving.database.database import Database
    from serving.keys import KeyStore

    database = Database(settings.database_url)
    try:
        if not KeyStore(database).any_exist():
            raise Invalid(
                f"{exposed}; make a key first with `bianlian keys create`, or set --api-key and --admin-key",
                param=param,
            )
    finally:
        database.close()


@cli.command()
def serve(
    base: Annotated[str | None, typer.Option(help="Bundled name, directory or hub id.")] = None,
    quantize: Annotated[str | None, typer.Option(help="none, 8bit or 4bit.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a PEFT directory; repeat for several.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None, typer.Option(help="Directory that adapter paths sent over HTTP may name.")
    ] = None,
    watch: Annotated[
        list[Path] | None, typer.Option(help="Directory whose PEFT directories are published as they appear.")
    ] = None,
    max_upload: Annotated[float | None, typer.Option(help="GiB an uploaded file may have [4].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads that compute [all cores].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [7860].")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens a conversation may have.")] = None,
    kv_cache_memory: Annotated[float | None, typer.Option(help="GiB for keys and values.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Tokens computed in one step.")] = None,
    adapter_slots: Annotated[int | None, typer.Option(help="Adapters on the device at once.")] = None,
    adapter_memory: Annotated[float | None, typer.Option(help="GiB of adapter weights on the device.")] = None,
    adapter_host_memory: Annotated[float | None, typer.Option(help="GiB of adapter weights in host memory.")] = None,
    api_key: Annotated[list[str] | None, typer.Option(help="Key that callers must send; repeat for several.")] = None,
    admin_key: Annotated[str | None, typer.Option(help="Key for loading and unloading adapters.")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of a web app that may call this API from a browser; repeatable.")
    ] = None,
    max_running_jobs: Annotated[
        int | None, typer.Option(help="Training runs at once; others wait in the queue [1].")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="What running answers get to finish when the server is asked to stop [6].")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json [text].")] = None,
    database: Annotated[
        str | None, typer.Option(help="URL for keys, usage and votes [SQLite in BIANLIAN_HOME].")
    ] = None,
    no_ui: Annotated[bool, typer.Option("--no-ui", help="API only.")] = False,
) -> None:
    """Serve the base and its adapters: UI at /, OpenAI-compatible API at /v1."""
    from adapters.settings import load_settings
    from serving.logs import configure_logging

    settings = load_settings(
        base=base,
        quantize=quantize,
        adapter=adapter,
        adapter_roots=adapter_root,
        watch=watch,
        max_upload=max_upload,
        device=device,
        dtype=dtype,
        threads=threads,
        host=host,
        port=port,
        max_model_len=max_model_len,
        kv_cache_memory=kv_cache_memory,
        max_batch_tokens=max_batch_tokens,
        adapter_slots=adapter_slots,
        adapter_memory=adapter_memory,
        adapter_host_memory=adapter_host_memory,
        api_key=api_key,
        admin_key=admin_key,
        cors_origins=cors_origin,
        max_running_jobs=max_running_jobs,
        drain_seconds=drain_seconds,
        log_format=log_format,
        database=database,
        ui=False if no_ui else None,
    )
    settings.require_home()
    _require_key_if_exposed(settings)
    configure_logging(settings.log_format)
    typer.echo(f"loading {settings.base}")
    run_server(build_services(settings))


@cli.command()
def demo(
    exit_after: Annotated[bool, typer.Option("--exit", help="Stop after printing the answers.")] = False,
    port: Annotated[int | None, typer.Option(help="Port to listen on [7860].")] = None,
) -> None:
    """Base and persona answer the same questions side by side; then UI and API are served."""
    import asyncio

    from adapters.base_model import load_base
    from adapters.samples import PERSONAS, shipped_samples
    from adapters.settings import load_settings
    from adapters.store import AdapterStore
    from serving.logs import configure_logging
    from serving.own_thread import run_on_own_thread

    settings = load_settings(port=port)
    settings.require_home()
    _require_key_if_exposed(settings)
    configure_logging(settings.log_format)
    base = run_on_own_thread(load_base, device=settings.device, dtype=settings.dtype)
    store = AdapterStore(settings.store)
    shipped = {directory.name for directory in shipped_samples(base.fingerprint)}
    if DEMO_PERSONA not in shipped and not store.numbers(DEMO_PERSONA):
        from training.cli import train_with_progress
        from training.samples import sample_config

        typer.echo(f"training the sample persona '{DEMO_PERSONA}' on {base.name}; this happens once")
        train_with_progress(sample_config(DEMO_PERSONA), settings.root)
    services = build_services(settings, base)
    if not store.numbers(DEMO_PERSONA):  # deleted once, and asked for again now
        store.publish(PERSONAS / DEMO_PERSONA, DEMO_PERSONA)
    try:
        asyncio.run(_print_side_by_side(services.chat))
    except BaseException:
        services.close()
        raise
    if exit_after:
        services.close()
    else:
        run_server(services)


async def _print_side_by_side(chat: ChatService) -> None:
    """The demo's table: one row a question, both answers from one batch with the same dice."""
    from dataclasses import replace

    from rich.console import Console
    from rich.table import Table

    from serving.compare import Lane, compare

    lanes = [Lane(chat.base.name), Lane(DEMO_PERSONA)]
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("question", 1), *((lane.model, 2) for lane in lanes)):
        table.add_column(title, ratio=ratio, overflow="fold")  # Chinese has no spaces to break at
    params = replace(chat.default_params(), seed=DEMO_SEED)
    for question in DEMO_QUESTIONS:
        asked = [[{"role": "user", "content": question}]] * len(lanes)
        async with await compare(chat, lanes, asked, params, max_tokens=96) as running:
            async for _ in running:
                pass
            table.add_row(question, *(lane.text.strip() for lane in running.lanes))
    Console().print(table)


adapters.cli.register(cli)
serving.cli.register(cli)
training.cli.register(cli)


def main() -> None:
    """Entry point: a BianlianError is one line and exit code 2 (1 when the fault is not the input's)."""
    try:
        cli(standalone_mode=True)
    except BianlianError as error:
        typer.echo(f"bianlian: {error.message}", err=True)
        sys.exit(1 if isinstance(error, (Unavailable, InsufficientStorage)) else 2)


if __name__ == "__main__":
    main()
