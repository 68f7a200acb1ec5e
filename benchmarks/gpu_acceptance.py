"""Acceptance on one GPU: the figures of the design's targets, measured in one run and printed as one table.

    python benchmarks/gpu_acceptance.py [--shape 8b] [--device cuda] [--out results.json] [--only SECTION ...]

Needs torch, transformers, peft, pydantic and pydantic-settings, and this repository; bitsandbytes, trl and datasets
where they are installed. Models have random weights and are built on the device; nothing large is written. Every
section is a process of its own with its own time limit: one that fails or hangs is reported and the others run.
`--shape tiny --device cpu` rehearses the whole script without a GPU; its figures mean nothing."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu.correctness import kernels, tokens  # noqa: E402
from benchmarks.gpu.run import Run  # noqa: E402
from benchmarks.gpu.serving import continuous, divergence, peft_mixed, serving  # noqa: E402
from benchmarks.gpu.training import training_memory, training_speed  # noqa: E402

SECTIONS: dict[str, tuple[Callable[[Run], None], int]] = {  # correctness first; limits in seconds
    "kernels": (kernels, 70),
    "tokens": (tokens, 70),
    "serving": (serving, 130),
    "continuous": (continuous, 90),
    "peft_mixed": (peft_mixed, 70),
    "divergence": (divergence, 45),
    "training_memory": (training_memory, 80),
    "training_speed": (training_speed, 60),
}
WHOLE_S = 530  # under nine minutes


def run_section(name: str, options: argparse.Namespace, limit_s: float) -> tuple[list[dict[str, Any]], str | None]:
    """The section's figures, those before a failure too, and how it failed."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "figures.jsonl"
        out.touch()
        command = [sys.executable, __file__, "--section", name, "--out", str(out)]
        command += ["--shape", options.shape, "--device", options.device]
        try:
            done = subprocess.run(command, timeout=limit_s, capture_output=True, text=True, cwd=ROOT)
            failure = None if done.returncode == 0 else done.stderr[-6000:]
        except subprocess.TimeoutExpired as error:
            printed = error.stderr.decode(errors="replace")[-2000:] if error.stderr else ""
            failure = f"ran past its {limit_s:.0f} s\n{printed}"
        figures = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return figures, failure


def print_table(figures: Sequence[dict[str, Any]], failures: dict[str, str]) -> None:
    marks = {True: "ok", False: "MISSED", None: ""}
    rows = [
        (f["section"], f["name"], f"{f['value']} {f['unit']}".strip(), f["target"], marks[f["holds"]]) for f in figures
    ]
    rows += [
        (name, "failed", failure.strip().splitlines()[-1][:90], "", "FAILED") for name, failure in failures.items()
    ]
    for row in rows:
        print(f"{row[0]:<16} {row[1]:<56} {row[2]:>24}  {row[3]:<10} {row[4]}")


@contextmanager
def quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["8b", "0.6b", "tiny"], default="8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file; default $OUT/gpu_acceptance.json, or beside the results")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        with quiet():
            SECTIONS[options.section][0](Run(options.section, options.shape, options.device, options.out))
        return 0
    out = options.out or Path(os.environ.get("OUT", ROOT / "benchmarks" / "results")) / "gpu_acceptance.json"
    started = time.perf_counter()
    figures: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in options.only or SECTIONS:
        left = WHOLE_S - (time.perf_counter() - started)
        began = time.perf_counter()
        if left < 10:
            failures[name] = f"not run: the {WHOLE_S} s of the whole were used up"
        else:
            found, failure = run_section(name, options, min(left, SECTIONS[name][1]))
            figures += found
            if failure:
                failures[name] = failure
        seconds[name] = round(time.perf_counter() - began, 1)
        device = torch.cuda.get_device_name() if options.device == "cuda" and torch.cuda.is_available() else "cpu"
        result = {"device": device, "shape": options.shape, "torch": torch.__version__, "figures": figures}
        out.write_text(json.dumps({**result, "failures": failures, "seconds": seconds}, indent=1, ensure_ascii=False))
    print_table(figures, failures)
    print(f"\n{time.perf_counter() - started:.0f} s in all; {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(1)
