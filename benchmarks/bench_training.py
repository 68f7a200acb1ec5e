"""Our training run beside a plain TRL script with equal settings, in turns, in one process.

Both get the same base, rows, labels, rank, targets, learning rate, schedule, batch size and number of steps, and both
save a checkpoint an epoch. A side's time is everything from tokens to the trained adapter: making the trainer, steps,
checkpoints. Tokens are those read, padding left out. The validation loss is of the same held-out rows, by one function.

Without --data, rows are made up: questions of a few words, answers of a few or many."""

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters.base_model import BaseModel, load_base
from adapters.renderer import ChatRenderer
from adapters.settings import load_settings
from benchmarks.results import write_results
from training.config import Plan, TrainConfig, max_length_for, parse_config, plan_for
from training.data.dataset import TrainingRow, load_dataset
from training.trainer import pick_targets, train, trainable, validation_loss

TARGET = 0.95  # of the plain script's tokens a second


@dataclass(frozen=True)
class Result:
    tokens_per_s: float
    train_loss: float  # mean over all steps
    validation_loss: float


def main() -> None:
    options = arguments()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or made_up(Path(scratch) / "rows.jsonl", options.rows, options.seed)
        config = parse_config(
            {
                "data": [data],
                "name": "bench",
                "base": options.base,
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "micro_batch_size": options.batch_size,
                "lora_r": options.lora_r,
                "max_length": options.max_length,
                "seed": options.seed,
            }
        )
        results: dict[str, list[Result]] = {"bianlian": [], "TRL script": []}
        figures: dict[str, Any] = {}
        for turn in range(options.repeats):
            for name, side in (("bianlian", ours), ("TRL script", plain_trl)):
                base = load_base(config.base, device=load_settings().device)
                training, held_out, plan = rows_and_plan(base, config)
                console.print(f"turn {turn + 1} of {options.repeats}: {name}")
                results[name].append(side(base, training, held_out, config, plan, Path(scratch) / f"{name}-{turn}"))
                figures = {"rows": len(training), "tokens_an_epoch": sum(len(row.input_ids) for row in training)}
                figures |= {"learning_rate": plan.learning_rate, "max_length": plan.max_length}
                del base
                gc.collect()
    print_and_write(console, config, results, figures, options.output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="any file that bianlian train takes for sft")
    parser.add_argument("--base", default="bianlian-mini")
    parser.add_argument("--rows", type=int, default=400, help="made-up rows, where there is no --data")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/training.json")
    return parser.parse_args()


def made_up(path: Path, rows: int, seed: int) -> Path:
    dice = random.Random(seed)
    words = "山 水 风 云 人 天 心 火 石 月 师父 大王 猴子 what where river stone the a of one two three".split()

    def text(shortest: int, longest: int) -> str:
        return " ".join(dice.choices(words, k=dice.randint(shortest, longest)))

    lines = [{"instruction": text(3, 20), "output": text(2, dice.choice((20, 20, 120)))} for _ in range(rows)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def rows_and_plan(base: BaseModel, config: TrainConfig) -> tuple[list[TrainingRow], list[TrainingRow], Plan]:
    renderer = ChatRenderer(base.tokenizer, base.stop_token_ids)
    dataset = load_dataset(config.data, renderer, max_length=max_length_for(config, base.max_model_len))
    dataset.report.refuse(strict=False)
    training, held_out = dataset.split(config.val_split, config.seed)
    width = base.model.config.get_text_config().hidden_size
    plan = plan_for(config, hidden_size=width, max_model_len=base.max_model_len, rows=len(training))
    return training, held_out, plan


def ours(
    base: BaseModel,
    rows: list[TrainingRow],
    held_out: list[TrainingRow],
    config: TrainConfig,
    plan: Plan,
    directory: Path,
) -> Result:
    losses: list[float] = []
    start = time.perf_counter()
    model = trainable(base, config, plan)
    train(base, model, rows, config, plan, directory, on_step=lambda progress: losses.append(progress.loss))
    seconds = time.perf_counter() - start
    return result(base, model, rows, held_out, config, seconds, losses)


def plain_trl(
    base: BaseModel,
    rows: list[TrainingRow],
    held_out: list[TrainingRow],
    config: TrainConfig,
    plan: Plan,
    directory: Path,
) -> Result:
    """What one would write with TRL's documentation at hand; only that the rows are tokens already."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    start = time.perf_counter()
    trainer = SFTTrainer(
        model=base.model,
        args=SFTConfig(
            output_dir=str(directory),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.batch_size // plan.micro_batch_size,
            learning_rate=plan.learning_rate,
            lr_scheduler_type=config.schedule,
            warmup_steps=config.warmup,
            optim="adamw_torch_fused",
            bf16=base.dtype == torch.bfloat16,
            fp16=base.dtype == torch.float16,
            use_cpu=base.device.type == "cpu",
            gradient_checkpointing=plan.gradient_checkpointing,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="epoch",
            logging_steps=1,
            seed=config.seed,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(
            {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
        ),
        processing_class=base.tokenizer,
        peft_config=LoraConfig(
            r=config.lora_r,
            lora_alpha=plan.lora_alpha,
            target_modules=pick_targets(base, ()),
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)  # a line a step on the console
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return result(base, trainer.model, rows, held_out, config, seconds, losses)


def result(
    base: BaseModel,
    model: Any,
    rows: list[TrainingRow],
    held_out: list[TrainingRow],
    config: TrainConfig,
    seconds: float,
    losses: list[float],
) -> Result:
    pad = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else base.tokenizer.eos_token_id
    tokens = config.epochs * sum(len(row.input_ids) for row in rows)
    return Result(tokens / seconds, statistics.fmean(losses), validation_loss(model, held_out, pad))


def print_and_write(
    console: Console,
    config: TrainConfig,
    results: dict[str, list[Result]],
    figures: dict[str, Any],
    output: Path | None,
) -> None:
    table = Table("", "tokens/s", "training loss", "validation loss", title=f"{config.base}, {figures['rows']} rows")
    speeds = {name: statistics.median(each.tokens_per_s for each in runs) for name, runs in results.items()}
    for name, runs in results.items():
        last = runs[-1]
        table.add_row(name, f"{speeds[name]:,.0f}", f"{last.train_loss:.3f}", f"{last.validation_loss:.3f}")
        figures[name] = {
            "tokens_per_s": [round(each.tokens_per_s, 1) for each in runs],
            "train_loss": round(last.train_loss, 4),
            "validation_loss": round(last.validation_loss, 4),
        }
    ratio = speeds["bianlian"] / speeds["TRL script"]
    console.print(table)
    console.print(f"ratio {ratio:.2f} (target {TARGET})")
    settings = config.model_dump(mode="json", include={"base", "epochs", "batch_size", "lora_r", "seed"})
    path = write_results("training", {"settings": settings, **figures, "ratio": round(ratio, 3)}, output)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
