"""A training process beside a server of the same home: snapshots can be talked to as they appear, and show what was
learned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from peft import PeftModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from adapters.snapshots import RunSnapshots, SnapshotStore, snapshot_id
from serving.probe import Probe
from tests.serving.running import RunningServer, running_server, settings_for
from training.config import parse_config
from training.runs.journal import Journal
from training.runs.run import start_run

ROWS = [{"instruction": f"say {n}", "output": f"{n} and {n + 1}", "system": "You count."} for n in range(12)]
PROMPTS = ["say 3", "say 4"]
WITHIN_S = 300


@contextmanager
def training(base: Path, home: Path, *, epochs: int) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process of its own, interrupted at the end."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "training.cli", "train", "--data", str(home / "data.jsonl"), "--name", "counter"]
    command += ["--base", str(base), "--device", "cpu", "--epochs", str(epochs), "--lora-r", "4", "--batch-size", "4"]
    command += ["--learning-rate", "0.01", "--val-split", "0", "--snapshot-steps", "80"]
    command += [part for prompt in PROMPTS for part in ("--demo-prompt", prompt)]
    environment = os.environ | {"BIANLIAN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=(home / "log").open("wb"))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=WITHIN_S)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.05)


def journal_of(home: Path, job: str) -> Journal:
    return Journal.open(home / "runs", job)


def peft_says(base: Path, adapter: Path | None, question: str, count: int) -> str:
    """The greedy answer of transformers and PEFT."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), Qwen3ForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    messages = [{"role": "system", "content": "You count."}, {"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.eval().generate(**prompt, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).rstrip("\ufffd")


def test_snapshots_of_a_running_training_can_be_talked_to(tiny_base: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_server(settings_for(tiny_base, home)) as server, training(tiny_base, home, epochs=400) as process:
        store = SnapshotStore(home / "runs")
        until(lambda: any(len(RunSnapshots(home / "runs" / job).steps()) >= 2 for job in store.job_ids()), process)
        (job,) = store.job_ids()
        run = store.run(job)
        first, second, *_ = run.steps()
        client = server.client()
        for step in (first, second):
            answer = client.chat.completions.with_raw_response.create(
                model=snapshot_id(job, step),
                messages=[{"role": "user", "content": "say 3"}],
                temperature=0,
                max_tokens=16,
            )
            said = answer.parse().choices[0].message.content
            assert said == peft_says(tiny_base, run.get(step).directory, "say 3", 16)
            assert answer.headers["x-bianlian-adapter"] == snapshot_id(job, step)
        assert process.poll() is None  # it is still at it
        assert [model.id for model in client.models.list()] == ["tiny"]
        card = client.models.retrieve(f"counter:step-{first}").model_dump()
        assert (card["root"], card["parent"]) == (snapshot_id(job, first), "tiny")
        # While answers are given all the time, training waits, but goes on.
        before = journal_of(home, job).status().step

        def waited_and_went_on() -> bool:
            messages = [{"role": "user", "content": "say 3"}]
            options = {"stream": True, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
            list(client.chat.completions.create(model="tiny", messages=messages, **options))
            steps = [metric for metric in journal_of(home, job).metrics() if metric.step > before]
            return len(steps) > 1 and any(step.paused_s for step in steps)

        until(waited_and_went_on, process)
        # Answered unasked, as nobody else was waiting; then replayed from what the run keeps.
        probed = f"{server.url}/v1/fine_tuning/jobs/{job}/probe"
        until(lambda: bool(httpx.get(probed).json()["rows"]), process)
        assert [row["prompt"] for row in httpx.get(probed).json()["rows"]] == PROMPTS


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home with a run that has learned its rows, and the run's id."""
    home = tmp_path_factory.mktemp("finished")
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    asked = parse_config(
        {
            "data": [home / "data.jsonl"],
            "name": "counter",
            "base": str(tiny_base),
            "epochs": 40,
            "lora_r": 4,
            "batch_size": 4,
            "learning_rate": 0.01,
            "val_split": 0,
            "snapshot_steps": 10,
            "demo_prompts": ["say 1", "say 2"],
        }
    )
    return home, start_run(asked, home, device="cpu").job_id


@pytest.fixture
def home(finished: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(finished[0], tmp_path / "learned")


def post(server: RunningServer, job: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/fine_tuning/jobs/{job}/probe", json=body, timeout=60)


def test_a_probe_shows_base_and_snapshots_side_by_side(tiny_base: Path, home: Path, finished: tuple[Path, str]) -> None:
    job = finished[1]
    with running_server(settings_for(tiny_base, home)) as server:
        probe = post(server, job, max_tokens=12).json()
        assert [model["step"] for model in probe["models"]] == [0, 10, 20, 30, 40]
        assert probe["models"][-1]["id"] == snapshot_id(job, 40)
        assert [row["prompt"] for row in probe["rows"]] == ["say 1", "say 2"]
        said = {cell["step"]: cell["text"] for cell in probe["rows"][0]["cells"]}
        assert said[40] == "1 and 2" != said[0]
        run = SnapshotStore(home / "runs").run(job)
        assert said[0] == peft_says(tiny_base, None, "say 1", 12)
        assert said[20] == peft_says(tiny_base, run.get(20).directory, "say 1", 12)
        server.assert_nothing_held()


def test_what_was_answered_once_is_kept_with_the_run(tiny_base: Path, home: Path, finished: tuple[Path, str]) -> None:
    job = finished[1]
    with running_server(settings_for(tiny_base, home)) as server:
        some = post(server, job, max_tokens=8, checkpoints=[10, snapshot_id(job, 40)]).json()
        assert [model["step"] for model in some["models"]] == [0, 10, 40]
        own = post(server, job, max_tokens=8, prompts=["hello"], checkpoints=[40]).json()
        assert [cell["step"] for cell in own["rows"][0]["cells"]] == [0, 40]
        before = requests_of(server)
        assert before == 2 * 3 + 2
        assert post(server, job, max_tokens=8, checkpoints=[10]).json()["rows"][1]["cells"] == [
            cell for cell in some["rows"][1]["cells"] if cell["step"] in (0, 10)
        ]
        assert requests_of(server) == before  # nothing was computed again
        all_of_them = post(server, job, max_tokens=8).json()
        assert requests_of(server) == before + 2 * 2  # steps 20 and 30
        before = requests_of(server)
    with running_server(settings_for(tiny_base, home)) as server:  # another server, later
        kept = httpx.get(f"{server.url}/v1/fine_tuning/jobs/{job}/probe").json()
        assert kept["rows"] == [*all_of_them["rows"], *own["rows"]]
        assert requests_of(server) == before


def requests_of(server: RunningServer) -> int:
    return sum(used["requests"] for used in httpx.get(f"{server.url}/v1/usage").json()["data"])


def test_what_cannot_be_probed_is_refused_by_name(tiny_base: Path, home: Path, finished: tuple[Path, str]) -> None:
    job = finished[1]
    with running_server(settings_for(tiny_base, home, api_key=["user"], admin_key="admin")) as server:
        url = f"{server.url}/v1/fine_tuning/jobs"

        def refused(job: str, key: str = "admin", **body: object) -> tuple[int, str | None, str]:
            answer = httpx.post(f"{url}/{job}/probe", json=body, headers={"Authorization": f"Bearer {key}"})
            error = answer.json()["error"]
            return answer.status_code, error["param"], error["message"]

        assert refused(job, "user")[0] == 403
        assert refused(job, "nobody")[0] == 401
        assert refused("counter-1")[:2] == (404, "job_id")
        assert refused(job, checkpoints=[11]) == (
            404,
            "checkpoints",
            f"run {job} has no snapshot of step 11; there are: 10, 20, 30, 40",
        )
        assert refused(job, checkpoints=["else:step-10"])[:2] == (400, "checkpoints")
        assert refused(job, checkpoints=[-10])[:2] == (400, "checkpoints.0")
        assert refused(job, checkpoints=[10**300])[:2] == (400, "checkpoints.0")
        assert refused(job, max_tokens=True)[:2] == (400, "max_tokens")
        assert refused(job, prompts=[""])[:2] == (400, "prompts.0")
        assert refused(job, prompts=["好" * 2000])[:2] == (400, "prompts")
        assert refused(job, max_tokens=0)[:2] == (400, "max_tokens")
        assert refused(job, colour="red")[0] == 400
        pin = httpx.post(
            f"{server.url}/v1/adapters/{snapshot_id(job, 10)}/pin", headers={"Authorization": "Bearer admin"}
        )
        assert pin.status_code == 400 and "publish its directory" in pin.json()["error"]["message"]
        series = home / "runs" / job / "snapshots" / "series.json"
        series.write_text(series.read_text().replace(json.loads(series.read_text())["base_fingerprint"], "0" * 64))
        assert "trains another base" in refused(job)[2]


def test_a_deleted_run_is_no_model_any_more_and_answers_that_run_go_on(
    tiny_base: Path, home: Path, finished: tuple[Path, str]
) -> None:
    job = finished[1]
    with running_server(settings_for(tiny_base, home)) as server:
        client, bank = server.client(), server.services.engine.engine.bank
        digest = SnapshotStore(home / "runs").resolve(snapshot_id(job, 40)).digest
        stream = client.chat.completions.create(
            model=snapshot_id(job, 40),
            messages=[{"role": "user", "content": "say 1"}],
            stream=True,
            max_tokens=400,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        shutil.rmtree(home / "runs" / job)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=snapshot_id(job, 40), messages=[{"role": "user", "content": "x"}])
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        shutil.rmtree(home / "store")  # the published version has the same weights
        until(lambda: bank.status(digest) == "cold")
        server.assert_nothing_held()


def test_the_kept_series_is_bounded() -> None:
    from serving.probe import DEFAULT_TOKENS, KEPT_CELLS, KEPT_ROWS, Cell, Row, Series, _bounded

    def row(prompt: str, cells: int) -> Row:
        return Row(
            prompt=prompt,
            system=None,
            max_tokens=DEFAULT_TOKENS,
            cells=tuple(
                Cell(model="m", step=step, digest="d", text="", completion_tokens=0, finish_reason="stop")
                for step in range(cells)
            ),
        )

    series = Series(name="face", base_fingerprint="f", prompts=("own",))
    rows = [*(row(str(n), 1) for n in range(KEPT_ROWS + 5)), row("own", KEPT_CELLS + 1)]
    kept = Probe(job_id="j", name="face", rows=_bounded(rows, series, [7, 9])).rows
    assert [row.prompt for row in kept] == ["own", *map(str, range(5, KEPT_ROWS + 5))]
    assert [cell.step for cell in kept[0].cells] == [0, 7, 9]
