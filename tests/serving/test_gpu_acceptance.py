"""The acceptance script, rehearsed without a GPU, and the compiler's own opinion of the kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_acceptance_script_runs_from_end_to_end_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/gpu_acceptance.py", "--shape", "tiny", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert done.returncode == 0, result["failures"]
    holds = {f["name"]: f["holds"] for f in result["figures"] if f["target"] == "holds"}
    assert holds == {"engine = PEFT, greedy, float32": True, "transformers answered in full": True}
    assert "ours / PEFT mixed batch" in done.stdout


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h200_and_reads_memory_in_wide_loads(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.compile_for_hopper"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    narrow = {line.split()[0]: int(line.split()[-6]) for line in done.stdout.splitlines() if " bf16 " in line}
    assert len(narrow) == 10
    assert all(count <= 8 for count in narrow.values()), done.stdout  # the odd scalar and vector; no matrix
