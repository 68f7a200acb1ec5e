"""What every benchmark writes beside its figures: when, and on which machine."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def write_results(name: str, figures: dict[str, Any], path: Path | None = None) -> Path:
    """Write `figures` with date and machine to `path`, or to results/NAME.json."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()} | figures
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """The load average says how idle it was: above the threads in use, others were measured too."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
