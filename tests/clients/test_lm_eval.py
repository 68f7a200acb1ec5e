"""lm-evaluation-harness: its figures through the server are those of transformers and PEFT."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import BASE, PERSONA, PYTHON, ROOT

TASKS = ROOT / "tests" / "clients" / "tasks"
BUNDLED = ROOT / "adapters" / "bundled"
MAX_TOKENS = 24  # as answers.yaml says


def harness(
    environment: dict[str, str], out: Path, task: str, model: str, arguments: str, *flags: str
) -> list[dict[str, object]]:
    """The samples the harness logs, in the data set's order."""
    command = ["lm_eval", "run", "--model", model, "--tasks", task, "--include_path", str(TASKS), "--log_samples"]
    command += ["--output_path", str(out), "--model_args", arguments, *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = out.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"])


@pytest.fixture(scope="module")
def reference() -> dict[str, list]:
    """By transformers and PEFT, without us."""
    docs = [json.loads(line) for line in (TASKS / "choices.jsonl").read_text().splitlines()]
    asked = {
        "base": str(BUNDLED / BASE),
        "adapter": str(BUNDLED / "personas" / PERSONA),
        "pairs": [(doc["question"], f" {choice}") for doc in docs for choice in doc["choices"]],
        "questions": [doc["question"] for doc in docs],
        "max_tokens": MAX_TOKENS,
    }
    command = [PYTHON, TASKS.parent / "reference.py"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", [BASE, PERSONA])
@pytest.mark.parametrize(
    "how", ["tokenized_requests=True", "tokenized_requests=False", "num_concurrent=2 --batch_size 4"]
)
def test_log_likelihoods_are_those_of_transformers(
    url: str, client_environment: dict[str, str], tmp_path: Path, reference: dict[str, list], model: str, how: str
) -> None:
    argument, *flags = how.split()
    arguments = f"model={model},base_url={url}/completions,tokenizer={BUNDLED / BASE},{argument}"
    samples = harness(client_environment, tmp_path / "out", "choices", "local-completions", arguments, *flags)
    scored = [choice[0] for sample in samples for choice in sample["resps"]]
    expected = reference["adapter" if model == PERSONA else "base"]
    assert [float(total) for total, _ in scored] == pytest.approx([total for total, _ in expected], abs=1e-3)
    assert [greedy == "True" for _, greedy in scored] == [greedy for _, greedy in expected]


def test_greedy_answers_are_those_of_transformers(
    url: str, client_environment: dict[str, str], tmp_path: Path, reference: dict[str, list]
) -> None:
    arguments = f"model={BASE},base_url={url}/chat/completions"
    flags = ["--apply_chat_template"]
    samples = harness(client_environment, tmp_path / "out", "answers", "local-chat-completions", arguments, *flags)
    said = [sample["resps"][0][0] for sample in samples]
    assert said == [text.split("\n")[0].rstrip("\ufffd") for text in reference["greedy"]]
