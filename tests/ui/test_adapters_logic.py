"""What the Adapters tab rests on, without a browser: finding among many, packing, shares that are 100 together."""

import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.archive import unpack_adapter
from adapters.errors import NotFound
from adapters.manifest import AdapterManifest, PersonaCard
from serving.lifecycle import AdapterLifecycle
from serving.ui.adapters.shares import as_shares, moved, retargeted
from serving.ui.units import amount, duration, size
from tests.serving.running import RunningServer, running_server, settings_for


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(settings_for(tiny_base, tmp_path_factory.mktemp("tab"))) as running:
        yield running


@pytest.fixture
def lifecycle(server: RunningServer, tiny_adapters: dict[str, Path], tmp_path: Path) -> Iterator[AdapterLifecycle]:
    """Three adapters: one with a title, one of two versions, one of another base."""
    registry = server.services.registry
    named = shutil.copytree(tiny_adapters["r2"], tmp_path / "named")
    manifest = AdapterManifest(
        name="monkey",
        base_name="tiny",
        base_fingerprint=registry.base_fingerprint,
        template_hash="",
        card=PersonaCard(title="孙悟空"),
    )
    manifest.write(named)
    registry.store.publish(named, "monkey")
    for rank in ("r4", "r8"):
        registry.store.publish(tiny_adapters[rank], "twice")
    foreign = shutil.copytree(tiny_adapters["r2"], tmp_path / "foreign")
    manifest.model_copy(update={"base_fingerprint": "0" * 64, "base_name": "another"}).write(foreign)
    registry.store.publish(foreign, "foreign")
    yield AdapterLifecycle(server.services.chat)
    for name in registry.store.names():
        registry.remove(name)
    registry.refresh()


def names(lifecycle: AdapterLifecycle, *text: str, **options: object) -> list[str]:
    return [adapter.name for adapter in lifecycle.find(*text, **options).adapters]


def test_adapters_are_found_by_name_title_digest_and_state(lifecycle: AdapterLifecycle) -> None:
    assert names(lifecycle) == ["foreign", "monkey", "twice"]
    assert names(lifecycle, "悟空") == names(lifecycle, "MONK") == ["monkey"]
    digest = lifecycle.registry.resolve("twice").digest
    assert names(lifecycle, digest[:10]) == ["twice"]
    assert names(lifecycle, "nobody") == []
    assert names(lifecycle, where="cold") == ["monkey", "twice"]
    assert names(lifecycle, where="trouble") == ["foreign"]  # of another base
    assert names(lifecycle, offered=True) == ["monkey", "twice"]
    bank = lifecycle.chat.engine.engine.bank
    bank.warm(lifecycle.registry.resolve("monkey"))
    bank.pin(lifecycle.registry.resolve("monkey").digest)
    assert names(lifecycle, where="warm") == names(lifecycle, where="pinned") == ["monkey"]
    page = lifecycle.find(offset=1, limit=1)
    assert page.total == 3 and [adapter.name for adapter in page.adapters] == ["monkey"]


def test_every_version_can_be_looked_at_whatever_its_base(lifecycle: AdapterLifecycle) -> None:
    assert str(lifecycle.version("twice", 1)) == "twice@1"
    assert str(lifecycle.version("foreign", 1)) == "foreign@1"
    with pytest.raises(NotFound, match="twice@7"):
        lifecycle.version("twice", 7)
    [one] = lifecycle.get("foreign").versions
    assert one.problem and "another" in one.problem and one.rank is None
    two = lifecycle.get("twice").now
    assert two and two.rank == 8 and two.alpha == 16 and "q_proj" in two.targets


def test_a_packed_version_unpacks_to_the_same_adapter(lifecycle: AdapterLifecycle, tmp_path: Path) -> None:
    version = lifecycle.version("monkey", 1)
    archive = lifecycle.pack(version, tmp_path)
    assert archive.name == "monkey@1.zip"
    with zipfile.ZipFile(archive) as packed:
        assert {name.partition("/")[0] for name in packed.namelist()} == {"monkey"}
    (tmp_path / "out").mkdir()
    assert unpack_adapter(archive, tmp_path / "out", limit=1 << 30).left_out == []
    again = lifecycle.store.publish(tmp_path / "out", "again")
    assert again.digest == version.digest and again.manifest == version.manifest


def test_shares_are_a_hundred_together_whatever_is_moved() -> None:
    dice = random.Random(1)
    for count in range(1, 17):
        shares = as_shares([dice.uniform(1e-6, 1e6) for _ in range(count)])
        for _ in range(20):
            at, wanted = dice.randrange(count), dice.choice([0, 0.1, 33.3, 99.99, 100, dice.uniform(0, 100)])
            shares = moved(shares, at, wanted)
            assert sum(round(share * 10) for share in shares) == 1000 and min(shares) >= 0.1
            if count > 1:
                assert shares[at] == pytest.approx(min(max(wanted, 0.1), 100 - 0.1 * (count - 1)), abs=0.051)


def test_shares_keep_their_proportions() -> None:
    assert as_shares([9, 1]) == [90.0, 10.0]
    assert as_shares([1, 1, 1]) == [33.4, 33.3, 33.3]
    assert moved([50.0, 30.0, 20.0], 0, 75) == [75.0, 15.0, 10.0]
    assert retargeted({}, ["a", "b"]) == [50.0, 50.0]
    assert retargeted({"a": 60.0, "b": 20.0, "c": 20.0}, ["a", "b"]) == [75.0, 25.0]
    assert retargeted({"a": 60.0, "b": 40.0}, ["a", "b", "c"]) == [40.0, 26.7, 33.3]
    assert retargeted({"a": 100.0}, []) == []


def test_numbers_read_well() -> None:
    assert [size(n) for n in (0, 1023, 1536, 200 * 2**20, 3 * 2**31)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "200 MiB",
        "6.0 GiB",
    ]
    assert [duration(s) for s in (None, 0.0042, 0.5, 1.5)] == ["—", "4.2 ms", "500 ms", "1.50 s"]
    assert [amount(n) for n in (0, 1.0, 1.25, 12.6, 3400)] == ["0", "1", "1.2", "13", "3,400"]
