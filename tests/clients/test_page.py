"""docs/clients.md: every block of it runs as it stands and prints an answer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.M | re.S)
BLOCKS = [(heading.splitlines()[0], *block) for heading in PAGE.split("\n## ")[1:] for block in BLOCK.findall(heading)]
BLOCKS += [("README", language, code) for language, code in BLOCK.findall(README) if "OpenAI(" in code]
PERSONA = ROOT / "adapters" / "bundled" / "personas" / "wukong"


@pytest.mark.parametrize(("heading", "language", "code"), BLOCKS, ids=[heading for heading, *_ in BLOCKS])
def test_block_runs(
    server: str,
    adapter_root: Path,
    client_environment: dict[str, str],
    heading: str,
    language: str,
    code: str,
) -> None:
    Path(client_environment["LLM_USER_PATH"]).mkdir()
    adapter = adapter_root / "my-face"  # as PEFT left it, without our manifest
    shutil.copytree(PERSONA, adapter, ignore=shutil.ignore_patterns("bianlian.json"), dirs_exist_ok=True)
    code = code.replace("http://127.0.0.1:7860", server).replace("/adapters/my-face", str(adapter))
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=client_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), done.stderr
    assert '"error"' not in done.stdout, done.stdout
