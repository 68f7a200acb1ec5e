"""Names and leases: what a model id means, and when a version's memory may go."""

from pathlib import Path

import pytest

from adapters.errors import Conflict, Invalid, NotFound
from adapters.manifest import AdapterManifest, AdapterVersion
from adapters.registry import AdapterRegistry
from adapters.store import AdapterStore
from tests import tiny


@pytest.fixture
def drained() -> list[AdapterVersion]:
    return []


@pytest.fixture
def registry(tmp_path: Path, drained: list[AdapterVersion]) -> AdapterRegistry:
    registry = AdapterRegistry(AdapterStore(tmp_path / "store"), "tiny", "f" * 64)
    registry.on_drained = drained.append
    return registry


def test_a_replaced_version_is_drained_with_its_last_lease(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], drained: list[AdapterVersion]
) -> None:
    old = registry.store.publish(tiny_adapters["r2"], "face")
    leases = [registry.acquire("face") for _ in range(2)]
    registry.store.publish(tiny_adapters["r4"], "face")
    registry.refresh()
    leases[0].release()
    leases[0].release()  # a second time changes nothing
    assert drained == [] and registry.leases(old) == 1
    leases[1].release()
    assert drained == [old] and registry.total_leases == 0


def test_rolling_back_to_a_version_keeps_it(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], drained: list[AdapterVersion]
) -> None:
    first = registry.store.publish(tiny_adapters["r2"], "face")
    lease = registry.acquire("face")
    second = registry.store.publish(tiny_adapters["r4"], "face")
    registry.acquire("face").release()
    registry.store.rollback("face")
    lease.release()
    registry.refresh()
    assert drained == [second] and registry.resolve("face") == first


def test_a_name_attached_at_run_time_hides_the_store_until_detached(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path]
) -> None:
    registry.store.publish(tiny_adapters["r2"], "face")
    with pytest.raises(Conflict, match="loaded already"):
        registry.attach("face", tiny_adapters["r4"])
    attached = registry.attach("face", tiny_adapters["r4"], replace=True)
    assert attached.number == 2 and registry.resolve("face") == registry.resolve("face@2") == attached
    assert registry.resolve("face@1").number == 1
    registry.detach("face")
    assert registry.versions() == []
    with pytest.raises(NotFound):
        registry.acquire("face")


def test_an_adapter_of_another_base_is_not_offered_and_says_whose_it_is(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    foreign = tiny.copy(tiny_adapters["r2"], tmp_path / "foreign")
    AdapterManifest(name="face", base_name="other", base_fingerprint="0" * 64, template_hash="").write(foreign)
    registry.store.publish(foreign, "face")
    assert registry.versions() == []
    with pytest.raises(Invalid, match="trained on base 'other'"):
        registry.acquire("face")
    with pytest.raises(Invalid, match="trained on base 'other'"):
        registry.attach("other-name", foreign)
    assert registry.total_leases == 0


def test_the_base_name_cannot_be_taken(registry: AdapterRegistry, tiny_adapters: dict[str, Path]) -> None:
    with pytest.raises(Conflict, match="base model's name"):
        registry.attach("tiny", tiny_adapters["r2"])


def test_an_unloaded_name_comes_back_with_its_next_version(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path]
) -> None:
    registry.store.publish(tiny_adapters["r2"], "face")
    registry.detach("face")
    with pytest.raises(NotFound):
        registry.resolve("face")
    assert registry.versions() == []
    new = registry.store.publish(tiny_adapters["r4"], "face")
    assert registry.resolve("face") == new and registry.versions() == [new]


def test_a_drained_version_that_is_asked_for_again_is_not_freed_but_drained_again(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], drained: list[AdapterVersion]
) -> None:
    """Freeing happens later, on another thread; a lease taken in between counts."""
    old = registry.store.publish(tiny_adapters["r2"], "face")
    registry.acquire("face").release()
    registry.store.publish(tiny_adapters["r4"], "face")
    registry.refresh()
    assert drained == [old]
    lease = registry.acquire("face@1")
    freed: list[str] = []
    registry.unless_leased(old, lambda: freed.append("too early"))
    lease.release()
    assert drained == [old, old]
    registry.unless_leased(old, lambda: freed.append("now"))
    assert freed == ["now"]


def test_weights_that_another_name_still_means_are_kept_until_that_name_moves(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], drained: list[AdapterVersion]
) -> None:
    for name in ("one", "two"):
        registry.store.publish(tiny_adapters["r2"], name)
    registry.acquire("one").release()
    registry.store.publish(tiny_adapters["r4"], "one")
    registry.refresh()
    assert drained == []
    registry.store.publish(tiny_adapters["r4"], "two")
    registry.refresh()
    assert [str(version) for version in drained] == ["two@1"]


def test_a_finished_request_reads_no_name_but_its_own(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        registry.store.publish(tiny_adapters["r2"], name)
    lease = registry.acquire("one")
    read: list[str] = []
    current = AdapterStore.current

    def noted(store: AdapterStore, name: str) -> AdapterVersion:
        read.append(name)
        return current(store, name)

    monkeypatch.setattr(AdapterStore, "current", noted)
    lease.release()
    assert read == ["one"]


def test_a_version_published_anew_under_a_removed_number_is_the_new_one(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path]
) -> None:
    old = registry.store.publish(tiny_adapters["r2"], "face")
    assert registry.resolve("face@1").digest == old.digest
    registry.store.remove("face")
    with pytest.raises(NotFound):
        registry.resolve("face")
    new = registry.store.publish(tiny_adapters["r4"], "face")
    assert str(new) == "face@1" and registry.resolve("face").digest == new.digest != old.digest


def test_listing_reads_each_name_once_and_sees_what_has_just_moved(
    registry: AdapterRegistry, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        registry.store.publish(tiny_adapters["r2"], name)
        registry.store.publish(tiny_adapters["r4"], name)
    assert [str(version) for version in registry.versions()] == ["a@2", "b@2"]
    elsewhere, real, read = AdapterStore(registry.store.root), registry.store._current_number, []

    def counted(name: str) -> int | None:
        read.append(name)
        return real(name)

    monkeypatch.setattr(registry.store, "_current_number", counted)
    elsewhere.rollback("a")
    assert [str(version) for version in registry.versions()] == ["a@1", "b@2"] and read == ["a", "b"]

    def deleted_meanwhile(name: str) -> int | None:
        number = counted(name)
        if name == "b" and number == 2:
            elsewhere.remove("b@2")
        return number

    monkeypatch.setattr(registry.store, "_current_number", deleted_meanwhile)
    assert [str(version) for version in registry.versions()] == ["a@1", "b@1"]
