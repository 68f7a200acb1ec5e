"""Snapshots on disk: whole or not there, evenly spread, found by run or by adapter."""

import shutil
from pathlib import Path

import pytest

from adapters.errors import NotFound
from adapters.manifest import AdapterManifest, AdapterVersion, digest_of
from adapters.registry import AdapterRegistry
from adapters.snapshots import MAX_SNAPSHOTS, RunSnapshots, Series, SnapshotStore, snapshot_id
from adapters.store import AdapterStore

JOB = "face-20260101-000000-abcd"


def begin(runs: Path, job: str, *, name: str = "face", started: float = 0.0, at_step: int = 0) -> RunSnapshots:
    snapshots = RunSnapshots(runs / job)
    snapshots.begin(Series(name=name, base_fingerprint="f" * 64, prompts=("hello",), started=started), at_step)
    return snapshots


def add(snapshots: RunSnapshots, step: int, adapter: Path) -> Path:
    def fill(directory: Path) -> None:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, directory / file)
        AdapterManifest(
            name="face", base_name="tiny", base_fingerprint="f" * 64, template_hash="0", system_prompt=str(step)
        ).write(directory)

    return snapshots.add(step, fill)


def test_a_long_run_keeps_a_bounded_series_evenly_spread(tmp_path: Path, tiny_adapters: dict[str, Path]) -> None:
    snapshots = begin(tmp_path, JOB)
    for step in range(10, 1001, 10):
        add(snapshots, step, tiny_adapters["r2"])
    steps = snapshots.steps()
    gaps = [later - earlier for earlier, later in zip(steps, steps[1:], strict=False)]
    assert len(steps) == MAX_SNAPSHOTS and (steps[0], steps[-1]) == (10, 1000)
    assert max(gaps) <= 3 * 990 / MAX_SNAPSHOTS
    assert sorted(path.name for path in snapshots.directory.iterdir() if path.name.startswith(".")) == []


def test_a_snapshot_appears_whole_or_not_at_all(tmp_path: Path, tiny_adapters: dict[str, Path]) -> None:
    snapshots, seen = begin(tmp_path, JOB), []

    def full(directory: Path) -> None:
        shutil.copyfile(tiny_adapters["r2"] / "adapter_config.json", directory / "adapter_config.json")
        seen.append((snapshots.steps(), snapshots.get(5)))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        snapshots.add(5, full)
    assert seen == [([], None)] and snapshots.steps() == [] and snapshots.get(5) is None
    assert not list(snapshots.directory.glob(".step-*"))
    version = digest_of(add(snapshots, 5, tiny_adapters["r2"]))
    assert [snapshot.digest for snapshot in snapshots.all()] == [version]


def test_going_on_from_a_checkpoint_forgets_what_came_after_it(tmp_path: Path, tiny_adapters: dict[str, Path]) -> None:
    snapshots = begin(tmp_path, JOB)
    for step in (10, 20, 30):
        add(snapshots, step, tiny_adapters["r2"])
    begin(tmp_path, JOB, at_step=20)
    assert snapshots.steps() == [10, 20]
    add(snapshots, 20, tiny_adapters["r4"])  # written again
    assert snapshots.get(20).digest == digest_of(tiny_adapters["r4"])


def test_a_snapshot_is_found_by_its_run_and_by_the_adapters_newest_run(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    store = SnapshotStore(tmp_path)
    older, newer = begin(tmp_path, "face-1", started=1.0), begin(tmp_path, "face-2", started=2.0)
    begin(tmp_path, "face-3", name="other", started=3.0)
    add(older, 10, tiny_adapters["r2"])
    add(older, 20, tiny_adapters["r2"])
    add(newer, 10, tiny_adapters["r4"])
    assert str(store.resolve("face-1:step-10")) == store.resolve("face-1:step-10").name == snapshot_id("face-1", 10)
    assert str(store.resolve("face:step-10")) == "face-2:step-10"
    assert str(store.resolve("face:step-20")) == "face-1:step-20"
    assert store.resolve("face:step-10").manifest.system_prompt == "10"
    with pytest.raises(NotFound, match="run face-2 has snapshots of steps 10$"):
        store.resolve("face-2:step-20")
    with pytest.raises(NotFound, match="did you mean 'face:step-20'"):
        store.resolve("fce-1:step-20")
    for strange in ("../face-1:step-10", "face-1:step--10", "face-1:step-x", "face-1:", ":step-10", "face-1:step-10@1"):
        assert store.find(strange) is None
    add(begin(tmp_path, f"{'n' * 64}-20260101-000000-abcd", name="n" * 64), 10, tiny_adapters["r2"])
    assert store.resolve(f"{'n' * 64}:step-10").name == f"{'n' * 64}-20260101-000000-abcd:step-10"
    add(newer, 10, tiny_adapters["r8"])
    assert store.resolve("face:step-10").digest == digest_of(tiny_adapters["r8"])


def test_a_deleted_run_is_offered_no_more_and_its_memory_goes_with_the_last_lease(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    registry = AdapterRegistry(AdapterStore(tmp_path / "store"), "tiny", "f" * 64)
    drained: list[AdapterVersion] = []
    registry.on_drained = drained.append
    add(begin(tmp_path / "runs", JOB), 10, tiny_adapters["r2"])
    model = snapshot_id(JOB, 10)
    lease = registry.acquire(model)
    assert registry.versions() == []  # not listed
    registry.refresh()
    assert drained == []
    shutil.rmtree(tmp_path / "runs" / JOB)
    with pytest.raises(NotFound):
        registry.acquire(model)
    registry.refresh()
    assert drained == []  # somebody's answer goes on
    lease.release()
    assert drained == [lease.version] and registry.total_leases == 0


def test_a_published_version_with_the_weights_of_a_snapshot_keeps_them_in_use(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    registry = AdapterRegistry(AdapterStore(tmp_path / "store"), "tiny", "f" * 64)
    add(begin(tmp_path / "runs", JOB), 10, tiny_adapters["r2"])
    published = registry.store.publish(tiny_adapters["r2"], "face")
    lease = registry.acquire(snapshot_id(JOB, 10))
    assert lease.version.digest == published.digest
    assert registry.remove("face") == [published]  # the request runs on the snapshot, which stays
    assert registry.resolve(snapshot_id(JOB, 10)).digest == published.digest
    lease.release()
