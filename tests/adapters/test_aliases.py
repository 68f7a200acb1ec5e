"""Aliases: the same user gets the same model, shares are kept, and a change of weights moves no more than it must."""

import logging
from pathlib import Path

import pytest

from adapters.aliases import Alias, AliasStore, AliasTarget
from adapters.errors import Conflict, Invalid
from adapters.registry import AdapterRegistry
from adapters.store import AdapterStore

USERS = [f"user-{number}" for number in range(4000)]


def alias(**weights: float) -> Alias:
    return Alias(name="persona", targets=[AliasTarget(model=model, weight=weight) for model, weight in weights.items()])


def test_shares_are_those_of_the_weights_and_users_stay() -> None:
    chosen = [alias(old=90, new=10).choose(user) for user in USERS]
    assert chosen == [alias(new=10, old=90).choose(user) for user in USERS], "the order says nothing"
    assert chosen.count("new") / len(USERS) == pytest.approx(0.10, abs=0.02)
    assert {alias(old=1).choose(user) for user in ("", "你", "\ud800")} == {"old"}


@pytest.mark.parametrize(("before", "after"), [(10, 20), (20, 10), (50, 90)])
def test_a_change_of_weights_moves_only_the_difference(before: float, after: float) -> None:
    one, two = alias(old=100 - before, new=before), alias(old=100 - after, new=after)
    moved = [(one.choose(user), two.choose(user)) for user in USERS]
    away = {pair for pair in moved if pair[0] != pair[1]}
    assert away == {("old", "new")} if after > before else away == {("new", "old")}
    share = sum(pair[0] != pair[1] for pair in moved) / len(USERS)
    assert share == pytest.approx(abs(after - before) / 100, abs=0.03)


def test_a_third_target_takes_from_both_and_moves_nobody_between_them() -> None:
    moved = {(alias(a=1, b=1).choose(user), alias(a=1, b=1, c=1).choose(user)) for user in USERS}
    assert moved == {("a", "a"), ("b", "b"), ("a", "c"), ("b", "c")}


def test_a_damaged_alias_takes_no_other_down(
    tmp_path: Path, tiny_adapters: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    store = AdapterStore(tmp_path / "store")
    store.publish(tiny_adapters["r2"], "face")
    aliases, registry = AliasStore(store), AdapterRegistry(store, "tiny", "0" * 64)
    for name in ("one", "two"):
        aliases.put(Alias(name=name, targets=[AliasTarget(model="face")]), registry)
    (store.aliases / "one.json").write_text('{"name": "one"')
    with caplog.at_level(logging.WARNING):
        assert [found.name for found in aliases.all()] == ["two"]
    with pytest.raises(Invalid, match="set it again"):
        aliases.get("one")
    assert aliases.get("../../one") is None and aliases.get("nobody") is None
    with pytest.raises(Conflict, match="points at face"):
        aliases.require_unused(lambda model: model == "face")
    assert store.names() == ["face"], "aliases are no adapters"
    aliases.delete("two")
    assert not store.is_alias("two")
