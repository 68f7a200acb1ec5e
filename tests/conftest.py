"""Fixtures shared by all tests: one random base on disk, and four adapters of different rank and targets."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where the kernels are defined

from tests import tiny
from tests.hub_mirror import Mirror, point_at, running_mirror
from tests.serving.databases import Cluster, running_cluster

collect_ignore = ["clients"]  # `make clients` runs those, in an environment of their own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--churn-requests", type=int, default=300, help="requests of test_churn.py; 100000 for a full run")
    parser.addoption("--fuzz-count", type=int, default=300, help="inputs of test_fuzz.py; 20000 for a full run")
    parser.addoption("--fuzz-seed", type=int, default=1, help="seed of its inputs")
    parser.addoption("--churn-seed", type=int, default=1, help="seed of its traffic")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "r2": tiny.save_adapter(root / "r2", tiny_base, rank=2, seed=1),
        "r4": tiny.save_adapter(root / "r4", tiny_base, rank=4, seed=2, targets=["q_proj", "down_proj"]),
        "r8": tiny.save_adapter(root / "r8", tiny_base, rank=8, seed=3, use_rslora=True),
        "r16": tiny.save_adapter(
            root / "r16", tiny_base, rank=16, seed=4, rank_pattern={"v_proj": 3}, alpha_pattern={"0.mlp.up_proj": 5}
        ),
    }


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/bianlian.db"
    cluster: Cluster = request.getfixturevalue("postgres")
    return cluster.new_database()


@pytest.fixture(autouse=True)
def no_ambient_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither read a developer's settings nor write to their home."""
    for key in [key for key in os.environ if key.startswith("BIANLIAN_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("BIANLIAN_HOME", str(tmp_path / "home"))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Both hubs on this machine, with caches of their own."""
    from huggingface_hub import constants

    with running_mirror() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        point_at(running.url, monkeypatch)
        yield running
