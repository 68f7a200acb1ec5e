"""The store: versions appear whole, names move atomically, nothing is left when something fails."""

import json
import os
import threading
from pathlib import Path

import pytest

from adapters.errors import Conflict, Invalid, NotFound
from adapters.store import AdapterStore
from tests import tiny


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


def test_what_a_killed_process_left_goes_and_what_is_under_way_stays(
    store: AdapterStore, tiny_adapters: dict[str, Path]
) -> None:
    store.publish(tiny_adapters["r2"], "face")
    for name, age in ((".incoming-old", 1), (".removed-old", 1), (".incoming-now", 0)):
        (store.root / name).mkdir()
        if age:
            os.utime(store.root / name, (0, 0))
    store.sweep()
    assert sorted(path.name for path in store.root.iterdir()) == [".incoming-now", "face"]
    assert store.names() == ["face"]


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
