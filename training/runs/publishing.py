"""What a run makes of its model: an adapter in the store, or with method full a base of its own; and on the way there
the files of a snapshot. All carry the manifest."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters.base_model import BaseModel
from adapters.manifest import AdapterManifest, AdapterVersion, TrainingRecord
from adapters.renderer import ChatRenderer
from adapters.store import AdapterStore
from training.config import TrainConfig
from training.data.report import Report
from training.runs.bases import publish_base
from training.trainer import save_adapter, save_model


@dataclass(frozen=True)
class Published:
    """One of `version` and `base`."""

    version: AdapterVersion | None = None
    base: Path | None = None

    @property
    def name(self) -> str:
        return str(self.version or self.base)

    @property
    def message(self) -> str:
        return f"published as {self.name}" + (
            f"; serve it with: bianlian serve --base {self.base}" if self.base else ""
        )

    @property
    def data(self) -> dict[str, str]:
        return {"version": self.name} | ({"digest": self.version.digest} if self.version else {})


@dataclass(frozen=True)
class Publisher:
    config: TrainConfig
    base: BaseModel
    report: Report

    def publish(self, model: Any, record: TrainingRecord, root: Path, scratch: Path) -> Published:
        """Into the home `root`; `scratch` is a directory for the files of an adapter until then."""
        if self.config.method == "full":
            return Published(base=publish_base(root, self.config.name, partial(self._write_base, model, record)))
        self.write_adapter(model, record, scratch)
        return Published(AdapterStore(root / "store").publish(scratch, self.config.name))

    def write_adapter(self, model: Any, record: TrainingRecord, directory: Path) -> None:
        """PEFT files and the manifest."""
        save_adapter(model, directory)
        self._manifest(record).write(directory)

    def _write_base(self, model: Any, record: TrainingRecord, directory: Path) -> None:
        save_model(model, self.base.tokenizer, directory, _dtype_on_disk(self.base))
        self._manifest(record).write(directory)

    def _manifest(self, record: TrainingRecord) -> AdapterManifest:
        renderer = ChatRenderer(self.base.tokenizer, self.base.stop_token_ids)
        return AdapterManifest(
            name=self.config.name,
            base_name=self.base.name,
            base_fingerprint=self.base.fingerprint,
            template_hash=renderer.template_hash,
            system_prompt=self.report.system_prompt,
            thinking=self.report.thinking,
            card=self.config.card,
            training=record,
        )


def _dtype_on_disk(base: BaseModel) -> torch.dtype:
    """What the base's own files are in: a base trained from it is as large."""
    config = json.loads((base.directory / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype", config.get("torch_dtype"))
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else torch.float32
