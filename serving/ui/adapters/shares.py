"""Shares of an alias in per cent, with one decimal: always 100 together, and nobody without a tenth."""

from collections.abc import Mapping, Sequence

_UNITS = 1000  # tenths of a per cent


def as_shares(weights: Sequence[float]) -> list[float]:
    """Positive weights, as many as there are tenths at most → shares, by largest remainders."""
    return [units / 10 for units in _apportion(weights, _UNITS)]


def moved(shares: Sequence[float], at: int, value: float) -> list[float]:
    """The shares when the one `at` is set to `value`: the others keep their proportions in what is left."""
    if len(shares) == 1:
        return [100.0]
    units = min(max(round(value * 10), 1), _UNITS - len(shares) + 1)
    others = _apportion([share for number, share in enumerate(shares) if number != at], _UNITS - units)
    return [each / 10 for each in [*others[:at], units, *others[at:]]]


def retargeted(before: Mapping[str, float], targets: Sequence[str]) -> list[float]:
    """The shares of `targets` after those of `before`: who stays keeps the proportion, who is new gets an average
    one."""
    kept = [before[target] for target in targets if target in before]
    average = sum(kept) / len(kept) if kept else 1.0
    return as_shares([before.get(target, average) for target in targets]) if targets else []


def _apportion(weights: Sequence[float], units: int) -> list[int]:
    """Whole units by weight, `units` together, at least one each."""
    total = sum(weights)
    quotas = [weight / total * units for weight in weights]
    parts = [max(1, int(quota)) for quota in quotas]
    while (short := units - sum(parts)) != 0:
        if short > 0:
            parts[max(range(len(parts)), key=lambda at: quotas[at] - parts[at])] += 1
        else:
            spare = [at for at in range(len(parts)) if parts[at] > 1]
            parts[max(spare, key=lambda at: parts[at] - quotas[at])] -= 1
    return parts
