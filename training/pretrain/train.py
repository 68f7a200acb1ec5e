"""The training loop of the bundled base: packed rows in, checkpoints and a model directory out.

Matrices inside the blocks are trained with Muon, embeddings and norms with AdamW; weights are float32,
the arithmetic bfloat16. A run is resumable at any saved step because the rows follow from the seed."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.pretrain.corpus import PackedRows
from training.pretrain.recipe import Shape
from training.pretrain.tokenizer import save_tokenizer

LOGITS_AT_ONCE = 2048
UNLEARNED = -100
SummedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, context: int) -> Qwen3ForCausalLM:
    """Fresh weights in float32."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Residual writers start smaller, so that depth does not raise the variance at the output (GPT-2).
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, std=0.02 / (2 * shape.layers) ** 0.5)
    return model


@dataclass(frozen=True)
class Schedule:
    """Peak rate after a linear warm-up, then linear to `final` × peak at the last step."""

    learning_rate: float
    warmup_steps: int
    final: float

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return 1.0 + (self.final - 1.0) * done


def build_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in n]
    return [
        # match_rms_adamw scales the orthogonal update to AdamW's usual size, so both share one rate.
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def attention_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, length) document numbers → (rows, 1, length, length), added to the scores: a token sees those
    before it in its own document and nothing of its neighbours in the row."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    seen = same & torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool, device=documents.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _summed_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.to(torch.bfloat16) @ embedding.to(torch.bfloat16).T
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=UNLEARNED)


def next_token_loss(
    hidden: Tensor, embedding: Tensor, targets: Tensor, learned: Tensor, summed: SummedLoss = _summed_loss
) -> Tensor:
    """Mean cross-entropy in nats over the learned targets. Logits exist for 2,048 tokens at a time, as (tokens,
    vocabulary) in float32 for a whole batch would be the largest tensor of the step; the last lot is filled up,
    so that a compiled `summed` sees one shape."""
    kept = learned.flatten()
    hidden, targets = hidden.flatten(0, 1)[kept], targets.flatten()[kept]
    count = targets.numel()
    missing = -count % LOGITS_AT_ONCE
    hidden, targets = F.pad(hidden, (0, 0, 0, missing)), F.pad(targets, (0, missing), value=UNLEARNED)
    lots = zip(hidden.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
    return torch.stack([summed(chunk, embedding, wanted) for chunk, wanted in lots]).sum() / max(1, count)


class Pretrainer:
    """One stage of training. `directory` holds `state.pt` (resumable), `log.jsonl` and, at the end, `model/`."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        rows: PackedRows,
        schedule: Schedule,
        directory: Path,
        *,
        batch_rows: int,
        device: torch.device,
        compiled: bool,
        title: str = "training",
    ):
        self.model = model.to(device)
        self.tokenizer = tokenizer
        self.rows = rows
        self.schedule = schedule
        self.directory = directory
        self.batch_rows = batch_rows
        self.device = device
        self.title = title
        self.steps = len(rows.tokens) // batch_rows
        self.optimizers = build_optimizers(model, schedule.learning_rate)
        # Plain products and a softmax, which the compiler joins, beat the CPU's flash attention at these lengths:
        # its backward pass alone took a fifth of a step (docs/decisions.md).
        model.set_attn_implementation("eager")
        self.backbone: Any = torch.compile(model.model) if compiled else model.model
        self.summed: SummedLoss = torch.compile(_summed_loss) if compiled else _summed_loss
        self.step = 0
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, save_every: int = 200) -> None:
        self._resume()
        log = (self.directory / "log.jsonl").open("a", encoding="utf-8")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with log, Progress(*columns) as progress:
            task = progress.add_task(self.title, total=self.steps, completed=self.step)
            while self.step < self.steps:
                started = time.perf_counter()
                loss = self._train_step()
                speed = self.rows.tokens.shape[1] * self.batch_rows / (time.perf_counter() - started)
                log.write(json.dumps({"step": self.step, "loss": round(loss, 4), "tokens_per_s": round(speed)}) + "\n")
                log.flush()
                self.step += 1
                progress.update(
                    task, completed=self.step, description=f"{self.title}: loss {loss:.3f} · {speed:,.0f} tokens/s"
                )
                if self.step % save_every == 0:
                    self._save_state()
        self._save_state()
        self.export(self.directory / "model")

    def _train_step(self) -> float:
        picked = slice(self.step * self.batch_rows, (self.step + 1) * self.batch_rows)
        tokens = torch.from_numpy(self.rows.tokens[picked].astype("int64")).to(self.device)
        learned = torch.from_numpy(self.rows.learned[picked]).to(self.device)
        documents = torch.from_numpy(self.rows.documents[picked].astype("int64")).to(self.device)
        mask = attention_mask(documents[:, :-1], torch.bfloat16)
        factor = self.schedule.factor(self.step, self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate * factor
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            inputs = tokens[:, :-1]
            hidden = self.backbone(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
            embedding = self.model.get_input_embeddings().weight
            loss = next_token_loss(hidden, embedding, tokens[:, 1:], learned[:, 1:], self.summed)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def export(self, directory: Path) -> None:
        """A directory that plain transformers loads: bfloat16 safetensors, tokenizer, ChatML template."""
        copy = Qwen3ForCausalLM(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.tie_weights()
        copy.to(torch.bfloat16)
        copy.generation_config.eos_token_id = self.tokenizer.eos_token_id
        copy.generation_config.pad_token_id = self.tokenizer.pad_token_id
        # What a small model needs to stay on the path; a caller's own values win.
        copy.generation_config.do_sample = True
        copy.generation_config.temperature = 0.4
        copy.generation_config.top_p = 0.8
        copy.generation_config.top_k = 20
        copy.save_pretrained(directory, max_shard_size="14MB")
        save_tokenizer(self.tokenizer, directory)

    def _save_state(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.directory / "state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.directory / "state.pt")

    def _resume(self) -> None:
        path = self.directory / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
