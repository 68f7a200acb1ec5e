"""OpenAI's fine-tuning API with the real SDK, a real server and real training processes on the tiny base."""

import csv
import io
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from adapters.errors import Conflict, InsufficientStorage
from adapters.store import AdapterStore
from serving.files import FileStore
from tests.full_disk import full_disk
from tests.openai_judge import DESCRIPTION, VARIABLE, Judge
from tests.serving.running import RunningServer, running_server, settings_for
from tests.serving.test_metrics import scrape, value
from training.api.objects import job_object
from training.config import TrainConfig
from training.jobs.fine_tuning import FineTuning, FineTuningRequest, check_files
from training.jobs.queue import JobQueue
from training.jobs.validate import validate
from training.runs.journal import Journal
from training.runs.run import run_job

PATIENCE_S = 120
ROWS = [
    {
        "messages": [
            {"role": "system", "content": "You count."},
            {"role": "user", "content": f"say {n}"},
            {"role": "assistant", "content": f"{n} and {n + 1}"},
        ]
    }
    for n in range(24)
]
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"say {n}"}]},
        "preferred_output": [{"role": "assistant", "content": f"{n}"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    for n in range(12)
]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def upload(client: openai.OpenAI, rows: list[Any], name: str = "rows.jsonl") -> str:
    return client.files.create(file=(name, jsonl(rows)), purpose="fine-tune").id


def wait_for(client: openai.OpenAI, job_id: str, condition: Callable[[FineTuningJob], object]) -> FineTuningJob:
    deadline = time.monotonic() + PATIENCE_S
    while not condition(job := client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def has_reached(step: int) -> Callable[[FineTuningJob], bool]:
    def reached(job: FineTuningJob) -> bool:
        assert job.status in ("validating_files", "queued", "running"), job
        return bool(job.model_extra and job.model_extra["bianlian"]["step"] >= step)

    return reached


def follow(server: RunningServer, job_id: str, **headers: str) -> Iterator[tuple[str, Any]]:
    """(id, event) until [DONE]."""
    url = f"{server.url}/v1/fine_tuning/jobs/{job_id}/events"
    with httpx.stream("GET", url, headers={"accept": "text/event-stream", **headers}, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        last_id = ""
        for line in reply.iter_lines():
            if line.startswith("id: "):
                last_id = line[4:]
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield last_id, json.loads(line[6:])
    pytest.fail("the stream ended without [DONE]")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(tiny_base: Path, home: Path) -> Iterator[RunningServer]:
    with running_server(settings_for(tiny_base, home)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def trained(server: RunningServer, client: openai.OpenAI) -> FineTuningJob:
    """A job that has succeeded, made as OpenAI's guide makes one."""
    created = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, ROWS),
        validation_file=upload(client, ROWS[:3]),
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
        suffix="counter",
        seed=7,
        metadata={"who": "me", "empty": ""},
        extra_body={"bianlian": {"lora_r": 4}},
    )
    assert created.status == "validating_files" and created.fine_tuned_model is None
    return wait_for(client, created.id, lambda job: job.status in ("succeeded", "failed"))


def test_a_job_ends_as_a_model_that_answers(
    server: RunningServer, client: openai.OpenAI, trained: FineTuningJob, home: Path
) -> None:
    assert trained.status == "succeeded", trained
    assert trained.error is None and trained.finished_at and trained.finished_at >= trained.created_at
    assert trained.hyperparameters.n_epochs == 2 and trained.hyperparameters.learning_rate_multiplier == "auto"
    assert trained.seed == 7 and trained.metadata == {"who": "me", "empty": ""} and trained.model == "tiny"
    assert trained.fine_tuned_model == "counter"
    answer = client.chat.completions.with_raw_response.create(
        model="counter", messages=[{"role": "user", "content": "say 3"}], max_tokens=8, temperature=0
    )
    assert answer.headers["x-bianlian-adapter"] == "counter@1"
    manifest = AdapterStore(home / "store").current("counter").manifest
    assert manifest is not None and manifest.training is not None
    assert (manifest.training.rows, manifest.training.steps, manifest.training.seed) == (24, 6, 7)
    assert manifest.training.tuned_val_loss is not None
    config = Journal.open(home / "runs", trained.id).config().train
    assert (config.lora_r, config.batch_size, config.epochs) == (4, 8, 2.0)
    tokens = sum(len(row) for row in rendered(config))
    assert trained.trained_tokens == 2 * tokens
    found = scrape(server.url)
    assert value(found, "bianlian_training_jobs", state="succeeded") == 1
    assert value(found, "bianlian_training_jobs", state="running") == 0
    assert value(found, "bianlian_training_tokens") == 2 * tokens


def rendered(config: TrainConfig) -> list[list[int]]:
    from training.runs.run_data import check_data

    return [row.input_ids for row in check_data(config).main.rows]


def test_events_are_listed_newest_first_and_followed_oldest_first(
    server: RunningServer, client: openai.OpenAI, trained: FineTuningJob
) -> None:
    streamed = list(follow(server, trained.id))
    messages = [event["message"] for _, event in streamed]
    assert messages[0].startswith("Created fine-tuning job") and messages[-1] == "published as counter@1"
    steps = [event["data"]["step"] for _, event in streamed if "train_loss" in event["data"]]
    assert steps == [1, 2, 3, 4, 5, 6]
    listed = list(client.fine_tuning.jobs.list_events(trained.id, limit=4))  # the SDK asks for all pages
    assert [event.id for event in listed] == [event_id for event_id, _ in reversed(streamed)]
    assert {event.type for event in listed} == {"message", "metrics"}
    again = list(follow(server, trained.id, **{"last-event-id": streamed[4][0]}))
    assert again == streamed[5:]
    asked = httpx.get(f"{server.url}/v1/fine_tuning/jobs/{trained.id}/events", params={"stream": "true"})
    assert asked.text.count("\ndata: ") == len(streamed) + 1 and asked.text.endswith("data: [DONE]\n\n")


def test_checkpoints_are_model_ids_with_metrics(client: openai.OpenAI, trained: FineTuningJob) -> None:
    checkpoint, *snapshots = client.fine_tuning.jobs.checkpoints.list(trained.id).data
    assert {snapshot.fine_tuned_model_checkpoint for snapshot in snapshots} <= {
        f"{trained.id}:step-{step}" for step in range(1, 7)
    }
    assert checkpoint.step_number == 6 and checkpoint.fine_tuning_job_id == trained.id
    assert checkpoint.metrics.train_loss and checkpoint.metrics.full_valid_loss
    answer = client.completions.create(model=checkpoint.fine_tuned_model_checkpoint, prompt="1", max_tokens=2)
    assert answer.model == "counter@1"


def test_results_are_a_table_of_every_step(client: openai.OpenAI, trained: FineTuningJob) -> None:
    (file_id,) = trained.result_files
    assert client.files.retrieve(file_id).purpose == "fine-tune-results"
    table = list(csv.DictReader(io.StringIO(client.files.content(file_id).text)))
    assert [line["step"] for line in table] == ["0", "1", "2", "3", "4", "5", "6"]
    assert float(table[0]["valid_loss"]) > 0 and not table[0]["train_loss"]
    assert all(float(line["train_loss"]) > 0 for line in table[1:])
    assert client.fine_tuning.jobs.retrieve(trained.id).result_files == [file_id]
    with pytest.raises(openai.BadRequestError, match="send one of adapter, fine-tune"):
        client.files.create(file=("x.csv", b"1"), purpose="fine-tune-results")  # type: ignore[arg-type]
    client.files.delete(file_id)
    assert client.fine_tuning.jobs.retrieve(trained.id).result_files == []


def test_jobs_are_listed_newest_first_by_page_and_metadata(client: openai.OpenAI, trained: FineTuningJob) -> None:
    broken = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, [{"messages": []}]))
    listed = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert listed.index(broken.id) < listed.index(trained.id)
    page = client.fine_tuning.jobs.list(limit=1)
    assert [job.id for job in page.data] == [broken.id] and page.has_more
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"who": "me"})] == [trained.id]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"empty": ""})] == [trained.id]
    assert not client.fine_tuning.jobs.list(metadata={"who": "you"}).data
    without = client.fine_tuning.jobs.list(extra_query={"metadata": "null"})
    assert broken.id in [job.id for job in without] and trained.id not in [job.id for job in without]


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (
            [*ROWS, {"messages": [{"role": "user", "content": "a"}]}],
            {},
            ["rows.jsonl:25: messages[1].role: the last message"],
        ),
        (
            [{"messages": ROWS[0]["messages"][::-1]}],
            {},
            ["rows.jsonl:1: messages[3].role: a system message may only come first"],
        ),
        ([{"messages": [*ROWS[0]["messages"], ROWS[0]["messages"][0]]}], {}, ["system message", "first"]),
        ([{"messages": [*ROWS[0]["messages"][1:], ROWS[0]["messages"][2]]}], {}, ["assistant", "follow"]),
        ([{"messages": [{"role": "boss", "content": "x"}]}], {}, ["must be one of system, developer, user"]),
        ([{"colour": "red"}], {}, ["rows.jsonl:1: no known format"]),
        (
            [*ROWS[:20], {"messages": [*ROWS[0]["messages"][:2], {"role": "assistant", "content": "a<|im_end|>"}]}],
            {"extra_body": {"bianlian": {"strict": True}}},
            ["rows.jsonl:21: messages[3]: contains <|im_end|>", "leave the row out"],
        ),
        (
            [*ROWS, {"messages": [{"role": "user", "content": "\ud83d"}, ROWS[0]["messages"][2]]}],
            {},
            ["rows.jsonl:25: messages[1].content: \\ud83d is half of a surrogate pair"],
        ),
        (PAIRS, {}, ["train on them with method dpo"]),
        (ROWS, {"method": {"type": "dpo"}}, ["not preferences"]),
    ],
)
def test_files_that_break_the_rules_fail_before_anything_runs(
    client: openai.OpenAI, rows: list[Any], options: dict[str, Any], words: list[str]
) -> None:
    file_id = upload(client, rows)
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file_id, **options)
    failed = wait_for(client, job.id, lambda job: job.status not in ("validating_files", "queued"))
    assert failed.status == "failed" and failed.error is not None
    assert failed.error.code == "invalid_training_file" and failed.error.param == "training_file"
    assert all(word in failed.error.message for word in words), failed.error.message
    assert "/" not in failed.error.message.replace("and/or", "") and file_id not in failed.error.message
    assert not [event for event in client.fine_tuning.jobs.list_events(job.id) if "started" in event.message]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"model": "gpt-4o-mini"}, "model", "this server can train on: tiny, bianlian-mini"),
        ({"training_file": "file-0123456789abcdef01234567"}, "training_file", "does not exist"),
        ({"validation_file": "nonsense"}, "validation_file", "does not exist"),
        ({"validation_file": ""}, "validation_file", "at least 1 character"),
        ({"seed": True}, "seed", "true is no number"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "true is no number"),
        ({"bianlian": {"lora_r": True}}, "bianlian.lora_r", "true is no number"),
        ({"bianlian": {"format": "alpacka"}}, "bianlian.format", "Input should be"),
        ({"bianlian": {"card": {"sample": []}}}, "bianlian.card.sample", "unknown option"),
        ({"suffix": "no spaces please"}, "suffix", "letters, digits"),
        ({"suffix": "x" * 65}, "suffix", "64"),
        ({"suffix": "tiny"}, "suffix", "base model's name"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata", "16"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k", "512"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", "not supported"),
        ({"colour": "red"}, "colour", "not supported"),
        ({"method": {"type": "reinforcement"}}, "method.type", "supervised"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "does not go with"),
        ({"method": {"type": "dpo"}, "hyperparameters": {}}, None, "not both"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "50"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", "integer"),
        ({"bianlian": {"lora_rank": 4}}, "bianlian.lora_rank", "did you mean 'lora_r'"),
        ({"bianlian": {"lora_r": 0}}, "bianlian.lora_r", "greater than or equal to 1"),
        ({"bianlian": {"data": ["/etc/passwd"]}}, "bianlian.data", "training_file"),
        ({"bianlian": {"replay_data": ["/etc/passwd"]}}, "bianlian.replay_data", "not supported"),
        ({"bianlian": {"objective": "dpo"}}, "bianlian.objective", "sft or pretrain"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused_by_name(
    client: openai.OpenAI, home: Path, body: dict[str, Any], param: str | None, message: str
) -> None:
    asked = {"model": "tiny", "training_file": upload(client, ROWS)} | body
    before = len(JobQueue(home).all())
    with pytest.raises((openai.BadRequestError, openai.NotFoundError, openai.ConflictError)) as caught:
        client.post("/fine_tuning/jobs", body=asked, cast_to=object)
    assert message in str(caught.value) and caught.value.param == param
    assert len(JobQueue(home).all()) == before


def test_a_reader_who_leaves_early_is_not_written_to(
    server: RunningServer, trained: FineTuningJob, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(home / "runs", trained.id)
    left = Journal.create(home / "runs", journal.config(), job_id="left-early", state="paused")
    for number in range(3000):
        left.note(f"event {number} " + "x" * 200)
    host, port = server.url.removeprefix("http://").split(":")
    request = f"GET /v1/fine_tuning/jobs/{left.job_id}/events?stream=true HTTP/1.1\r\nHost: {host}\r\n\r\n"
    with caplog.at_level("WARNING", logger="asyncio"):
        for _ in range(3):
            with socket.create_connection((host, int(port))) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets at once
                connection.sendall(request.encode())
                assert b"200 OK" in connection.recv(1000)
        httpx.get(f"{server.url}/v1/fine_tuning/jobs/{left.job_id}/events")  # the loop has come round
    left.remove()
    assert not [record for record in caplog.records if "socket.send()" in record.getMessage()]


@pytest.mark.slow
def test_two_servers_on_one_home_run_each_job_once(tiny_base: Path, tmp_path: Path) -> None:
    settings = settings_for(tiny_base, tmp_path / "home")
    with running_server(settings) as first, running_server(settings) as second:
        clients = [first.client(), second.client()]
        jobs = [
            client.fine_tuning.jobs.create(
                model="tiny",
                training_file=upload(client, ROWS[:12]),
                hyperparameters={"n_epochs": 1},
                suffix=f"twin-{number}",
            )
            for number, client in enumerate(clients)
        ]
        for job, other in zip(jobs, reversed(clients), strict=True):  # each asks the server it did not come by
            done = wait_for(other, job.id, lambda job: job.status in ("succeeded", "failed"))
            assert done.status == "succeeded", done
            events = Journal.open(tmp_path / "home" / "runs", job.id).events()
            assert sum(event.message.startswith("started as process") for event in events) == 1
            assert sum(event.message.startswith("files validated") for event in events) == 1
            assert other.models.retrieve(str(done.fine_tuned_model)).id == done.fine_tuned_model
        assert AdapterStore(tmp_path / "home" / "store").numbers("twin-0") == [1]


def test_preferences_are_what_dpo_learns_from(tmp_path: Path) -> None:
    files = FileStore(tmp_path / "uploads")
    with files.workspace() as workspace:
        (workspace / "pairs").write_bytes(jsonl(PAIRS))
        file_id = files.add(workspace / "pairs", "pairs.jsonl", "fine-tune").id
    tuning = FineTuning(JobQueue(tmp_path), files, {"tiny": "tiny"}, lambda name: None)
    hyperparameters = {"beta": 0.2, "n_epochs": "auto", "learning_rate_multiplier": 2}
    body = {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
    job = tuning.create(FineTuningRequest(model="tiny", training_file=file_id, method=body))  # type: ignore[arg-type]
    check_files(job.journal)
    asked = job.config.train
    assert (asked.objective, asked.beta, asked.epochs, asked.learning_rate_multiplier) == ("dpo", 0.2, 3.0, 2.0)
    assert job_object(job, [])["method"]["dpo"]["hyperparameters"] == hyperparameters | {"batch_size": "auto"}


def test_a_request_that_the_disk_has_no_room_for_or_the_name_is_taken_leaves_nothing(tmp_path: Path) -> None:
    files = FileStore(tmp_path / "uploads")
    with files.workspace() as workspace:
        (workspace / "rows").write_bytes(jsonl(ROWS))
        file_id = files.add(workspace / "rows", "rows.jsonl", "fine-tune").id
    tuning = FineTuning(JobQueue(tmp_path), files, {"tiny": "tiny"}, lambda name: None)
    with full_disk(100), pytest.raises(InsufficientStorage):
        tuning.create(FineTuningRequest(model="tiny", training_file=file_id, suffix="x"))
    (tmp_path / "bases" / "mine").mkdir(parents=True)
    with pytest.raises(Conflict, match="there is a base at") as caught:
        tuning.create(FineTuningRequest(model="tiny", training_file=file_id, suffix="mine"))
    assert caught.value.param == "suffix"
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("rows", "bianlian", "param", "words"),
    [
        (ROWS[:1] * 20, {}, "bianlian.val_split", ["all 20 rows are equal", "give bianlian.val_split 0"]),
        (ROWS, {"use_dora": True, "method": "full"}, "bianlian.use_dora", ["full"]),
        ([{"text": "only words"}] * 20, {}, "bianlian.objective", ["use bianlian.objective pretrain"]),
    ],
    ids=["split", "combination", "objective"],
)
def test_what_a_run_would_refuse_is_said_in_the_words_of_the_request(
    tiny_base: Path, tmp_path: Path, rows: list[Any], bianlian: dict[str, Any], param: str, words: list[str]
) -> None:
    files = FileStore(tmp_path / "uploads")
    with files.workspace() as workspace:
        (workspace / "rows").write_bytes(jsonl(rows))
        file_id = files.add(workspace / "rows", "rows.jsonl", "fine-tune").id
    tuning = FineTuning(JobQueue(tmp_path), files, {"tiny": str(tiny_base)}, lambda name: None)
    job = tuning.create(FineTuningRequest(model="tiny", training_file=file_id, bianlian=bianlian))
    validate(job.journal)
    error = job_object(tuning.queue.get(job.id), [])["error"]
    assert error is not None and error["param"] == param
    assert all(word in error["message"] for word in words) and "--" not in error["message"], error


def test_only_the_admin_trains(tiny_base: Path, tmp_path: Path) -> None:
    with running_server(settings_for(tiny_base, tmp_path, api_key=["user"], admin_key="admin")) as running:
        url = f"{running.url}/v1/fine_tuning/jobs"
        status = [
            httpx.get(url, headers={"authorization": f"Bearer {key}"}).status_code for key in ("user", "admin", "?")
        ]
        assert status == [403, 200, 401]


def test_unknown_jobs_and_places_are_not_found(
    server: RunningServer, client: openai.OpenAI, trained: FineTuningJob
) -> None:
    for job_id in ("nobody", "..%2f..", "%2e%2e", "x" * 300, "a%00b", "%E4%BD%A0"):
        reply = httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job_id}/events")
        assert reply.status_code == 404 and reply.json()["error"]["type"] == "not_found_error", job_id
    with pytest.raises(openai.NotFoundError, match="list after"):
        client.fine_tuning.jobs.list_events(trained.id, after="ftevent-9999")
    with pytest.raises(openai.ConflictError, match="succeeded already"):
        client.fine_tuning.jobs.cancel(trained.id)
    with pytest.raises(openai.ConflictError, match="has succeeded"):
        client.fine_tuning.jobs.resume(trained.id)


@pytest.mark.slow
def test_paused_restarted_killed_and_resumed_it_ends_as_if_nothing_had_happened(
    tiny_base: Path, tmp_path: Path
) -> None:
    """300 steps, a checkpoint every 40. The server goes away twice, the job once by pause and once by kill -9."""
    home = tmp_path / "home"
    settings = settings_for(tiny_base, home)
    with running_server(settings) as server:
        client = server.client()
        file_id = upload(client, ROWS)
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file_id,
            hyperparameters={"n_epochs": 50, "batch_size": 4, "learning_rate_multiplier": 0.5},
            suffix="survivor",
            extra_body={"bianlian": {"save_steps": 40, "val_split": 0.1, "lora_r": 4}},
        )
        client.files.delete(file_id)  # the run has its own
        second = client.fine_tuning.jobs.create(model="tiny", training_file=upload(client, ROWS))
        wait_for(client, job.id, has_reached(5))
        journal = Journal.open(home / "runs", job.id)
        first_process = journal.status().process
        assert first_process is not None
        os.kill(first_process.pid, signal.SIGSTOP)  # or it might be done before the other's file has been read
        assert client.fine_tuning.jobs.retrieve(job.id).estimated_finish
        assert wait_for(client, second.id, lambda job: job.status != "validating_files").status == "queued"
        assert client.fine_tuning.jobs.cancel(second.id).status == "cancelled"
        with ThreadPoolExecutor() as pool:
            pausing = pool.submit(client.fine_tuning.jobs.pause, job.id)
            while journal.wish() != "pause":
                assert not pausing.done(), pausing.result()
                time.sleep(0.01)
            os.kill(first_process.pid, signal.SIGCONT)
            paused = pausing.result()
        assert paused.status == "paused" and paused.estimated_finish is None, paused
        while first_process.alive:  # it has said so, and only has to end
            time.sleep(0.05)
    paused_at = journal.status().step

    with running_server(settings) as server:
        client = server.client()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
        assert client.fine_tuning.jobs.resume(job.id).status == "queued"
        wait_for(client, job.id, has_reached(paused_at + 5))
        process = journal.status().process
        assert process is not None and process != first_process
        os.kill(process.pid, signal.SIGSTOP)  # or it might be done before the server is back
    assert process.alive

    with running_server(settings) as server:
        client = server.client()
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        os.kill(process.pid, signal.SIGKILL)
        failed = wait_for(client, job.id, lambda job: job.status != "running")
        assert failed.status == "failed" and failed.error is not None
        assert failed.error.code == "killed" and f"bianlian jobs resume {job.id}" in failed.error.message
        assert client.get("/models/tiny", cast_to=object)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("survivor")
        client.fine_tuning.jobs.resume(job.id)
        done = wait_for(client, job.id, lambda job: job.status not in ("queued", "running"))
        assert done.status == "succeeded", done
        assert client.models.retrieve("survivor")

    alone = JobQueue(tmp_path / "alone").submit(journal.config().train)
    whole = run_job(alone.journal.directory, device="cpu")
    assert whole.version is not None and whole.record is not None and whole.record.tuned_val_loss is not None
    resumed = AdapterStore(home / "store").current("survivor")
    assert resumed.manifest is not None and resumed.manifest.training is not None
    assert resumed.manifest.training.tuned_val_loss == pytest.approx(whole.record.tuned_val_loss, rel=1e-5)
    assert resumed.digest == whole.version.digest
    steps = [metric.step for metric in journal.metrics() if metric.kind == "step"]
    assert steps == list(range(1, whole.record.steps + 1))


@pytest.mark.skipif(DESCRIPTION is None, reason=f"{VARIABLE} does not name OpenAI's API description")
def test_bodies_are_valid_by_openai_s_schemas(client: openai.OpenAI, trained: FineTuningJob, home: Path) -> None:
    assert DESCRIPTION is not None
    judge = Judge(Path(DESCRIPTION).expanduser())

    def get(path: str = "", **query: str) -> Any:
        return client.get(f"/fine_tuning/jobs{path}", cast_to=object, options={"params": query})

    broken = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=upload(client, ROWS),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 1}}},
    )
    wait_for(client, broken.id, lambda job: job.status == "failed")
    for job_id in (trained.id, broken.id):
        judge.assert_valid("FineTuningJob", get(f"/{job_id}"))
        judge.assert_valid("ListFineTuningJobEventsResponse", get(f"/{job_id}/events", limit="100"))
        judge.assert_valid("ListFineTuningJobCheckpointsResponse", get(f"/{job_id}/checkpoints"))
    judge.assert_valid("ListPaginatedFineTuningJobsResponse", get(limit="100"))
    judge.assert_valid("OpenAIFile", client.get(f"/files/{trained.training_file}", cast_to=object))
    # What the judge must not let pass.
    wrong = get(f"/{trained.id}") | {"status": "done"}
    assert judge.complaints("FineTuningJob", wrong)
    paused = JobQueue(home).submit(Journal.open(home / "runs", trained.id).config().train)
    JobQueue(home).pause(paused.id)
    # The schema's list of states lacks the one that the example of its own pause endpoint shows.
    complaints = judge.complaints("FineTuningJob", get(f"/{paused.id}"))
    assert len(complaints) == 1 and "'paused' is not one of" in complaints[0]
