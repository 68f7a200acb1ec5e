"""`bianlian serve` that counts activations: how often an adapter was brought into a slot. It writes the number, when
it ends, to the file that BENCH_ACTIVATIONS names."""

import os
from collections.abc import Collection
from pathlib import Path

import app
from serving.engine.bank import AdapterBank


def main() -> None:
    activations = 0
    activate = AdapterBank.activate

    def counted(bank: AdapterBank, digests: Collection[str], in_use: Collection[str]) -> None:
        nonlocal activations
        missing = sum(bank.status(digest) != "active" for digest in digests)
        activate(bank, digests, in_use)
        activations += missing

    AdapterBank.activate = counted
    try:
        app.main()
    finally:
        Path(os.environ["BENCH_ACTIVATIONS"]).write_text(str(activations), encoding="ascii")


if __name__ == "__main__":
    main()
