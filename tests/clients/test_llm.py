"""The `llm` command: a model of ours in extra-openai-models.yaml."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import BASE, PERSONA

MODEL = "- model_id: {name}\n  model_name: {name}\n  api_base: {url}\n"


@pytest.fixture
def environment(client_environment: dict[str, str], url: str, guarded: str) -> dict[str, str]:
    home = Path(client_environment["LLM_USER_PATH"])
    home.mkdir()
    models = MODEL.format(name=PERSONA, url=url) + "  supports_schema: true\n"
    models += MODEL.format(name=BASE, url=guarded) + "  api_key_name: bianlian\n"
    (home / "extra-openai-models.yaml").write_text(models)
    return client_environment


def llm(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["llm", *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["-s", "用一句话回答。", "-o", "temperature", "0.2"]], ids=str)
def test_prompt(environment: dict[str, str], how: list[str]) -> None:
    done = llm(environment, "-m", PERSONA, "-o", "max_tokens", "24", *how, "你是谁？")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_conversation(environment: dict[str, str]) -> None:
    assert llm(environment, "-m", PERSONA, "-o", "max_tokens", "24", "你是谁？").returncode == 0
    done = llm(environment, "-c", "-o", "max_tokens", "24", "你师父呢？")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    logged = json.loads(llm(environment, "logs", "--json").stdout)
    assert [entry["model"] for entry in logged] == [PERSONA, PERSONA]


def test_schema(environment: dict[str, str]) -> None:
    done = llm(environment, "-m", PERSONA, "--schema", "masks int", "How many masks?")
    assert done.returncode == 0 and isinstance(json.loads(done.stdout)["masks"], int), done.stderr


def test_key(environment: dict[str, str]) -> None:
    refused = llm(environment, "-m", BASE, "--key", "wrong", "你好")
    assert refused.returncode == 1 and "API key" in refused.stderr
    set_key = ["llm", "keys", "set", "bianlian", "--value", "user-key"]
    subprocess.run(set_key, env=environment, check=True, timeout=120)
    done = llm(environment, "-m", BASE, "-o", "max_tokens", "8", "你好")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
