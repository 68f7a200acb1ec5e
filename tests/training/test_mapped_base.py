"""The base costs a training process nothing of its own: its frozen weights are clean pages of a file."""

import json
import mmap
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.base_model import load_base
from tests import tiny

# Trains on two rows; at the last step says where its frozen weights lie, waits, and says whose the pages are.
TRAINING = """
import json, sys
from pathlib import Path
import torch
from training.runs import run
from training.config import parse_config
from training.runs.run import Watcher, start_run

def mappings():
    # [(start, end, file, {figure: kB})], as the kernel has them
    found = []
    for line in open("/proc/self/smaps"):
        first, *rest = line.split()
        if first.endswith(":"):
            found[-1][3][first[:-1]] = int(rest[0]) if rest[0].isdigit() else 0
        else:
            start, end = (int(part, 16) for part in first.split("-"))
            found.append((start, end, rest[4] if len(rest) > 4 else "", {}))
    return found

bases = []
load = run.load_base
run.load_base = lambda *a, **k: bases.append(load(*a, **k)) or bases[-1]

def at_last_step(progress):
    if progress.step < progress.steps:
        return
    frozen = [p for p in bases[-1].model.parameters() if not p.requires_grad]
    where = [next((m for m in mappings() if m[0] <= p.data_ptr() < m[1]), None) for p in frozen]
    files = {m[2] for m in where if m and m[2].endswith(".safetensors")}
    mapped = sum(p.nbytes for p, m in zip(frozen, where) if m and m[2] in files)
    print(json.dumps({"files": sorted(files), "mapped": mapped, "total": sum(p.nbytes for p in frozen)}), flush=True)
    for weight in frozen:
        weight.detach().view(torch.uint8).max()  # every page is there
    sys.stdin.readline()
    figures = [m[3] for m in mappings() if m[2] in files]
    pages = ("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous")
    print(json.dumps({name: sum(f[name] for f in figures) * 1024 for name in pages}), flush=True)

home = Path(sys.argv[1])
for base, method in json.loads(sys.argv[2]):
    asked = parse_config({
        "data": [home / "data.jsonl"], "name": "x", "base": base, "method": method, "epochs": 1, "batch_size": 1,
        "val_split": 0, "lora_r": 2,
    })
    start_run(asked, home, device="cpu", watcher=Watcher(on_step=at_last_step))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One large enough to be told from the noise, in two types."""
    root = tmp_path_factory.mktemp("bases")
    wide = tiny.save_base(root / "float32", hidden=512, layers=4)
    half = tiny.save_base(root / "bfloat16", hidden=512, layers=1)
    AutoModelForCausalLM.from_pretrained(wide, dtype=torch.bfloat16).save_pretrained(half)
    for path in root.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {"float32": wide, "bfloat16": half}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose the pages are")
def test_frozen_weights_are_shared_and_clean_while_training(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "output": "well"} for n in range(2)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The machine computes in one of the two types, so one of the first two is cast, or neither needs to be.
    runs = [(str(bases["float32"]), "lora"), (str(bases["bfloat16"]), "lora"), (str(bases["float32"]), "qlora")]
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(tmp_path), json.dumps(runs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdin and process.stdout
    with process:
        for _ in runs:
            said = json.loads(process.stdout.readline())
            assert said["mapped"] >= 0.99 * said["total"] > 10 << 20
            maps = [mapped(Path(file)) for file in said["files"]]  # another process that reads the same weights
            process.stdin.write("\n")
            process.stdin.flush()
            pages = json.loads(process.stdout.readline())
            for one in maps:
                one.close()
            assert pages["Shared_Clean"] >= 0.9 * said["mapped"]
            own = pages["Private_Clean"] + pages["Private_Dirty"] + pages["Shared_Dirty"] + pages["Anonymous"]
            assert own <= 0.02 * said["mapped"]
    assert process.returncode == 0


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    zlib.crc32(pages)  # every page is read
    return pages


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_the_kept_form_computes_what_the_loaded_one_does(tiny_base: Path, tmp_path: Path, quantize: str) -> None:
    options = {"device": "cpu", "dtype": "bfloat16", "quantize": quantize}
    plain, written, read = (
        load_base(str(tiny_base), **options, cache=cache)  # type: ignore[arg-type]
        for cache in (None, tmp_path / "cache", tmp_path / "cache")
    )
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert plain.fingerprint == written.fingerprint == read.fingerprint
    assert read.directory == tiny_base and read.name == "tiny" and read.dtype == torch.bfloat16
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        expected = plain.model(ids).logits
        assert torch.equal(written.model(ids).logits, expected)
        assert torch.equal(read.model(ids).logits, expected)


def test_without_a_place_to_keep_it_the_base_is_loaded_as_before(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    base = load_base(str(tiny_base), device="cpu", dtype="bfloat16", cache=tmp_path / "cache")
    assert {weight.dtype for weight in base.model.parameters()} == {torch.bfloat16}


def test_what_the_files_hold_already_is_not_written_again(tiny_base: Path, tmp_path: Path) -> None:
    load_base(str(tiny_base), device="cpu", dtype="float32", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_what_the_bases_own_configuration_says_holds_for_its_kept_form_too(
    tiny_base: Path, tmp_path: Path, quantize: str
) -> None:
    """The fingerprint is of the weights: rotary frequencies, or what ends a turn, may change under it."""
    base = tiny.copy(tiny_base, tmp_path / "base")
    options = {"device": "cpu", "dtype": "bfloat16", "quantize": quantize}
    before = load_base(str(base), **options, cache=tmp_path / "cache")  # type: ignore[arg-type]
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 50.0
    (base / "config.json").write_text(json.dumps(config))
    generation = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 5]}))
    plain = load_base(str(base), **options)  # type: ignore[arg-type]
    kept = load_base(str(base), **options, cache=tmp_path / "cache")  # type: ignore[arg-type]
    assert kept.fingerprint == before.fingerprint and len(list((tmp_path / "cache").iterdir())) == 1
    assert kept.stop_token_ids == plain.stop_token_ids != before.stop_token_ids
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(kept.model(ids).logits, plain.model(ids).logits)
        assert not torch.equal(kept.model(ids).logits, before.model(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_to_a_mapped_base_stays_in_the_process(tiny_base: Path, tmp_path: Path, dtype: str) -> None:
    """Full fine-tuning writes to the weights; neither the base's own files nor the kept form may change by it."""
    options = {"device": "cpu", "dtype": dtype, "cache": tmp_path / "cache"}
    base = load_base(str(tiny_base), **options)  # type: ignore[arg-type]
    files = [*tiny_base.glob("*.safetensors"), *tmp_path.glob("cache/*/*.safetensors")]
    assert len(files) == (1 if dtype == "float32" else 2)
    before = [path.read_bytes() for path in files]
    for weight in base.model.parameters():
        weight.zero_()
    assert [path.read_bytes() for path in files] == before
    assert all(weight.any() for weight in load_base(str(tiny_base), **options).model.parameters())  # type: ignore[arg-type]
