"""Data sets by id, from a mirror on this machine."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.errors import Invalid, NotFound
from tests.hub_mirror import Mirror
from training.data.formats import read_data
from training.data.hub_data import local_files
from training.data_cli import data_cli

ROWS = b'{"query": "a", "response": "b"}\n'


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("hub", ["hf", "modelscope"])
def test_the_files_meant_are_downloaded_and_read(hub: str, mirror: Mirror, tmp_path: Path) -> None:
    mirror.datasets["org/one"] = {"README.md": b"#", "dataset_infos.json": b"{}", "rows.jsonl": ROWS}
    mirror.datasets["org/splits"] = {
        "data/train-00000-of-00002.jsonl": ROWS,
        "data/train-00001-of-00002.jsonl": ROWS,
        "data/test-00000-of-00001.jsonl": ROWS,
        "LICENSE.txt": b"free",
    }
    local = tmp_path / "mine.jsonl"
    (one,) = local_files([f"{hub}:org/one"])
    assert read_data(one).rows and mirror.asked == [("rows.jsonl", None)]
    assert names(local_files([f"{hub}:org/splits", str(local)])) == [
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
        "mine.jsonl",
    ]
    assert names(local_files([f"{hub}:org/splits:test"])) == ["test-00000-of-00001.jsonl"]
    assert names(local_files([f"{hub}:org/splits@v1:data/test-00000-of-00001.jsonl"])) == ["test-00000-of-00001.jsonl"]
    assert names(local_files([f"{hub}:org/splits:LICENSE.txt"])) == ["LICENSE.txt"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("hf:org/several", Invalid, "several files: a.jsonl, b.jsonl; say which, as hf:org/several:a.jsonl"),
        ("hf:org/several:c.jsonl", Invalid, "has no 'c.jsonl'; did you mean"),
        ("modelscope:org/several:trian", Invalid, "has no 'trian'"),
        ("hf:org/empty", Invalid, "has no file with rows"),
        ("hf:nonsense", Invalid, "names no data set; write hf:owner/name"),
        ("hf:org/nobody", NotFound, "no dataset 'org/nobody'.*or give a local file"),
    ],
)
def test_what_is_not_clear_says_what_to_write(text: str, error: type[Exception], message: str, mirror: Mirror) -> None:
    mirror.datasets["org/several"] = {"a.jsonl": ROWS, "b.jsonl": ROWS}
    mirror.datasets["org/empty"] = {"README.md": b"#"}
    with pytest.raises(error, match=message) as refusal:
        local_files([text])
    assert "\n" not in str(refusal.value)


def test_looking_at_data_takes_ids_as_training_does(mirror: Mirror, tmp_path: Path, tiny_base: Path) -> None:
    rows = b"".join(b'{"query": "%d", "response": "b"}\n' % number for number in range(4))
    mirror.datasets["org/one"] = {"rows.jsonl": rows}
    checked = CliRunner().invoke(data_cli, ["check", "hf:org/one", "--base", str(tiny_base)])
    assert checked.exit_code == 0 and "rows: 4 good, 0 bad" in checked.output, checked.output
    shown = CliRunner().invoke(data_cli, ["preview", "modelscope:org/one", "--base", str(tiny_base), "--rows", "1"])
    assert shown.exit_code == 0 and "⟦b<|im_end|>⟧" in shown.output, shown.output
    out = tmp_path / "out.jsonl"
    converted = CliRunner().invoke(data_cli, ["convert", "hf:org/one", "--to", "messages", "--out", str(out)])
    assert converted.exit_code == 0 and len(read_data(out).rows) == 4, converted.output
    halves = CliRunner().invoke(data_cli, ["split", "hf:org/one:rows.jsonl", "--out", str(tmp_path)])
    assert halves.exit_code == 0, halves.output
