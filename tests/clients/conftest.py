"""A real `bianlian serve`, run by the project's own environment; the clients live in another, without torch."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
BASE, PERSONA = "bianlian-mini", "wukong"
QUESTION = [{"role": "user", "content": "你是谁？"}]

# Set before any client is imported: none of them may ask the network for anything.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
for name in [name for name in os.environ if name.startswith(("BIANLIAN_", "OPENAI_"))]:
    del os.environ[name]


@contextmanager
def serving(home: Path, *flags: str, **settings: str) -> Iterator[str]:
    """The server's address. `settings` are environment variables without their prefix."""
    environment = os.environ | {"BIANLIAN_HOME": str(home)} | {f"BIANLIAN_{key}": settings[key] for key in settings}
    command = [PYTHON, "-m", "app", "serve", "--port", "0", *flags]  # this checkout's code, whatever is installed
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        said = ""
        for line in process.stdout:
            said += line
            if address := re.search(r" on (http://\S+)", line):
                yield address[1]
                break
        else:
            pytest.fail(f"the server ended before it served: {said}")
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, adapter_root: Path) -> Iterator[str]:
    """As `bianlian serve` starts, and in float32, so that figures can be compared with transformers'."""
    home = tmp_path_factory.mktemp("home")
    with serving(home, "--dtype", "float32", "--adapter-root", str(adapter_root)) as address:
        yield address


@pytest.fixture(scope="session")
def url(server: str) -> str:
    return f"{server}/v1"


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server with keys, on which one answer runs and one request waits."""
    flags = ["--no-ui", "--api-key", "user-key", "--admin-key", "admin-key"]
    with serving(tmp_path_factory.mktemp("guarded"), *flags, MAX_RUNNING="1", MAX_WAITING="1") as address:
        yield f"{address}/v1"


@pytest.fixture
def client_environment(tmp_path: Path) -> dict[str, str]:
    """For clients run as commands: those of this environment come first, and their files are thrown away."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    homes = {"HOME": tmp_path, "LLM_USER_PATH": tmp_path / "llm", "HF_HOME": tmp_path / "huggingface"}
    return os.environ | {"PATH": path} | {name: str(home) for name, home in homes.items()}
