"""The store: versions appear whole, names move atomically, nothing is left when something fails."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from adapters.errors import Conflict, InsufficientStorage, Invalid, NotFound
from adapters.store import AdapterStore
from adapters.workspace import replace_file, sweep, workspace
from tests import tiny
from tests.full_disk import full_disk


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_published_version_is_current_and_found_in_every_spelling(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    first = store.publish(tiny_adapters["r2"], "face")
    second = store.publish(tiny_adapters["r4"], "face")
    assert (first.number, second.number) == (1, 2)
    for reference in ("face", "face@2", "face@latest", f"face@{second.digest[:8]}"):
        assert store.resolve(reference) == second
    assert store.resolve("face@1") == first
    assert store.names() == ["face"]


def test_the_same_weights_make_no_new_version(store: AdapterStore, tiny_adapters: dict[str, Path]) -> None:
    assert store.publish(tiny_adapters["r2"], "face") == store.publish(tiny_adapters["r2"], "face")


def test_rollback_moves_the_name_and_a_later_version_takes_a_new_number(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    store.publish(tiny_adapters["r2"], "face")
    store.publish(tiny_adapters["r4"], "face")
    assert store.rollback("face").number == 1
    with pytest.raises(Conflict, match="oldest"):
        store.rollback("face")
    assert store.publish(tiny_adapters["r8"], "face").number == 3


def test_removing_the_current_version_moves_the_name_to_the_newest_left(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    for name in ("r2", "r4"):
        store.publish(tiny_adapters[name], "face")
    store.remove("face@2")
    assert store.current("face").number == 1
    store.remove("face")
    assert store.names() == [] and files(store.root) == []


def test_unknown_names_and_versions_name_the_nearest(store: AdapterStore, tiny_adapters: dict[str, Path]) -> None:
    store.publish(tiny_adapters["r2"], "huanhuan")
    with pytest.raises(NotFound, match="did you mean 'huanhuan'"):
        store.resolve("huanhaun")
    with pytest.raises(NotFound, match="huanhuan@7"):
        store.resolve("huanhuan@7")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "名字"])
def test_names_that_could_be_paths_are_refused(store: AdapterStore, tiny_adapters: dict[str, Path], name: str) -> None:
    with pytest.raises(Invalid):
        store.publish(tiny_adapters["r2"], name)
    assert not store.root.exists()


def test_a_refused_adapter_leaves_nothing_behind(
    store: AdapterStore, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    broken = tiny.copy(tiny_adapters["r2"], tmp_path / "broken")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(Invalid, match="not JSON"):
        store.publish(broken, "face")
    pickled = tiny.copy(tiny_adapters["r2"], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(Invalid, match="pickle"):
        store.publish(pickled, "face")
    with pytest.raises(NotFound):
        store.publish(tmp_path / "nowhere", "face")
    assert not store.root.exists()


def test_two_publishers_at_once_get_different_numbers(store: AdapterStore, tiny_adapters: dict[str, Path]) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda source=source: numbers.append(store.publish(source, "face").number))
        for source in tiny_adapters.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4]
    assert not list(store.root.rglob(".incoming-*"))


def test_verify_notices_a_changed_file(store: AdapterStore, tiny_adapters: dict[str, Path]) -> None:
    version = store.publish(tiny_adapters["r2"], "face")
    store.verify(version)
    config = version.directory / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))
    with pytest.raises(Invalid, match="changed on disk"):
        store.verify(version)


def test_an_export_is_a_plain_peft_directory(
    store: AdapterStore, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    store.publish(tiny_adapters["r2"], "face")
    store.export("face", tmp_path / "out")
    assert files(tmp_path / "out") == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(Conflict):
        store.export("face", tmp_path / "out")


PUBLISHING = """
import sys, time
from pathlib import Path
from adapters.store import AdapterStore

def stay(directory):
    print("publishing", flush=True)
    time.sleep(600)

AdapterStore(Path(sys.argv[1])).publish(Path(sys.argv[2]), "face", check=stay)
"""


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_a_living_one_writes_stays(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    store.publish(tiny_adapters["r2"], "face")
    command = [sys.executable, "-c", PUBLISHING, str(store.root), str(tiny_adapters["r4"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publishing:
        try:
            assert publishing.stdout and publishing.stdout.readline() == "publishing\n"
            (incoming,) = store.root.glob(".incoming-*")
            os.utime(incoming, (0, 0))  # however long it takes
            store.sweep()
            assert files(incoming) == ["adapter_config.json", "adapter_model.safetensors"]
        finally:
            publishing.kill()
    assert incoming.exists()
    (store.root / ".removed-1").mkdir()
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == ["face"]
    assert store.current("face").number == 1


def test_what_other_machines_write_is_left_alone_for_a_day(store: AdapterStore) -> None:
    store.root.mkdir()
    for name, age in ((".incoming-0123-old", 2 * 86_400), (".incoming-0123-new", 3600)):
        (store.root / name).mkdir()
        os.utime(store.root / name, (time.time() - age,) * 2)
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == [".incoming-0123-new"]


def test_a_workspace_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, early = fcntl.flock, [True]

    def flock(file: int, operation: int) -> None:
        if early.pop() if early else False:
            sweep(tmp_path)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with workspace(tmp_path) as directory:
        assert not early and directory.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_publishes_nothing_and_leaves_nothing(
    store: AdapterStore, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = (tiny_adapters["r16"] / "adapter_model.safetensors").stat().st_size // 2
    with full_disk(room), pytest.raises(InsufficientStorage, match="has no room"):
        store.publish(tiny_adapters["r16"], "face")
    assert not list(store.root.iterdir())
    assert store.publish(tiny_adapters["r2"], "face").number == 1

    def full(path: Path, text: str) -> None:
        with full_disk(0):
            replace_file(path, text)

    monkeypatch.setattr("adapters.store.replace_file", full)  # there was room for the version, but for no more
    for name in ("face", "other"):
        with pytest.raises(InsufficientStorage):
            store.publish(tiny_adapters["r4"], name)
    assert store.names() == ["face"] and store.numbers("face") == [1]
    assert sorted(path.name for path in store.root.rglob("*")) == sorted(
        ["face", "1", "current", "digest", "adapter_config.json", "adapter_model.safetensors"]
    )


def test_notes_sent_with_the_same_weights_replace_those_of_the_version(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    store.publish(tiny_adapters["r2"], "face", notes="one")
    assert store.publish(tiny_adapters["r2"], "face").notes == "one"
    again = store.publish(tiny_adapters["r2"], "face", notes="two")
    assert (again.number, again.notes) == (1, "two") and store.numbers("face") == [1]


def test_notes_travel_with_a_version_and_what_is_refused_is_not_published(
    store: AdapterStore, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    assert store.publish(tiny_adapters["r2"], "face", notes="第一版").notes == "第一版"
    store.export("face", tmp_path / "out")
    assert store.publish(tmp_path / "out", "other").notes == "第一版"
    with pytest.raises(Invalid, match="the limit is"):
        store.publish(tiny_adapters["r4"], "face", notes="x" * 5000)

    def refuse(directory: Path) -> None:
        raise Invalid(f"{directory}: no")

    with pytest.raises(Invalid, match=str(tiny_adapters["r4"])):
        store.publish(tiny_adapters["r4"], "face", check=refuse)
    assert store.numbers("face") == [1] and not list(store.root.glob(".incoming-*"))
