"""Numbers as people read them."""

NONE = "—"


def size(nbytes: float | None) -> str:
    """1536 → "1.5 KiB"."""
    if nbytes is None:
        return NONE
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float | None) -> str:
    """0.0123 → "12 ms"; 1.5 → "1.50 s"."""
    if seconds is None:
        return NONE
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def amount(value: float) -> str:
    """Few figures: 0.4, 2, 12, 3,400."""
    return f"{value:.1f}" if value < 10 and value != int(value) else f"{value:,.0f}"
