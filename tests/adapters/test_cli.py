"""`bianlian adapters` on a real store."""

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adapters.aliases import Alias, AliasStore, AliasTarget
from adapters.errors import Conflict, Invalid, NotFound
from adapters.registry import AdapterRegistry
from adapters.settings import load_settings
from adapters.store import AdapterStore
from app import cli, main


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, ["adapters", *map(str, words)])
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def archive(tiny_adapters: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "r4.zip"
    with zipfile.ZipFile(path, "w") as file:
        for part in tiny_adapters["r4"].iterdir():
            file.write(part, f"r4/{part.name}")
        file.writestr("r4/README.md", "hello")
    return path


def test_from_import_to_remove(tiny_adapters: dict[str, Path], archive: Path, tmp_path: Path) -> None:
    assert "published face@1" in run("import", tiny_adapters["r2"], "--name", "face", "--notes", "the first")
    assert "no new version" in run("import", tiny_adapters["r2"], "--name", "face")
    imported = run("import", archive, "--name", "face")
    assert "left out: r4/README.md" in imported and "published face@2" in imported
    shown = run("show", "face@1")
    assert "notes: the first" in shown and "face@1" in shown
    assert "versions @1, @2*" in run("show", "face")
    assert "face is now face@1" in run("rollback", "face")
    assert "face is now face@2" in run("rollback", "face", "--to", 2)
    assert "face@2" in run("export", "face", tmp_path / "out") and (tmp_path / "out/adapter_config.json").is_file()
    assert "is intact" in run("verify", "face")
    store = AdapterStore(load_settings().store)
    aliases = AliasStore(store)
    aliases.put(Alias(name="persona", targets=[AliasTarget(model="face@1")]), AdapterRegistry(store, "tiny", "0" * 64))
    assert "persona → face@1 (1)" in run("list")
    for reference in ("face", "face@1"):
        with pytest.raises(Conflict, match="points at face@1"):
            run("remove", reference, "--yes")
    assert "deleted face@2" in run("remove", "face@2", "--yes")
    aliases.delete("persona")
    assert "deleted face@1" in run("remove", "face", "--yes")
    with pytest.raises(NotFound):
        run("show", "face")


def test_a_harmful_archive_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("../../up", "x")
    with pytest.raises(Invalid, match="not a plain relative path"):
        run("import", archive, "--name", "face")
    assert not load_settings().store.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "x.jsonl", "--name", "x"],
        ["serve"],
        ["jobs", "list"],
        ["jobs", "pause", "x"],
        ["adapters", "list"],
        ["adapters", "remove", "--yes", "x"],
    ],
    ids=" ".join,
)
def test_a_home_that_cannot_be_used_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("BIANLIAN_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("sys.argv", ["bianlian", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bianlian: the home {tmp_path}/file/home cannot be ") and "set BIANLIAN_HOME to" in line
