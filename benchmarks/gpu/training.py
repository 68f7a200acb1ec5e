"""Sections that measure training: its speed beside a plain TRL script, its memory at a 6B shape."""

import gc
import importlib.util
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import RANK, TARGETS, base_of, build_model
from benchmarks.gpu.run import SHAPES, Run, Shape


def training_speed(run: Run) -> None:
    """LoRA and full training in the same plain loop; the training package against a plain TRL script."""
    shape = run.shape if run.shape_name == "tiny" else SHAPES["0.6b"]
    speeds = {}
    for method in ("lora", "full"):
        step, length = training_step(run, shape, method)
        speeds[method] = length / run.seconds(step, repeats=3)
        run.report(f"{method}, plain loop", speeds[method], "tokens/s")
        del step
        gc.collect()
        if run.on_cuda:
            torch.cuda.empty_cache()
    run.report("LoRA / full, shape 0.6B", speeds["lora"] / speeds["full"])
    if all(importlib.util.find_spec(name) for name in ("trl", "datasets")):
        ours, theirs = package_and_trl(run, shape)
        run.report("TRL script", theirs, "tokens/s")
        run.report("training package", ours, "tokens/s")
        run.report("training package / TRL", ours / theirs, "", least=0.95)
    else:
        run.report("training package / TRL", "not measured: trl or datasets is not installed")


def package_and_trl(run: Run, shape: Shape) -> tuple[float, float]:
    """Tokens a second of `training.trainer` and of a TRL script with the same settings, on the same rows."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from training import trainer
    from training.config import Plan, TrainConfig
    from training.data.dataset import TrainingRow

    rng = random.Random(0)
    length, rows = min(512, shape.length), 128 if run.on_cuda else 16
    ids = [[rng.randrange(1, shape.vocabulary) for _ in range(length)] for _ in range(rows)]
    times = []
    with tempfile.TemporaryDirectory() as directory:
        base = base_of(build_model(shape, run.device, run.dtype), run.dtype, run.device)
        config = TrainConfig(data=(Path("none"),), name="speed", epochs=1, lora_r=RANK)
        plan = Plan(1e-4, 8, 8, 2 * RANK, length, False)
        table = [TrainingRow(row, row, None) for row in ids]  # type: ignore[arg-type]
        model = trainer.add_adapter(base, config, plan)
        start = time.perf_counter()
        trainer.train(base, model, table, config, plan, Path(directory) / "ours")
        times.append(time.perf_counter() - start)
        del model, base
        plain = SFTTrainer(
            model=build_model(shape, run.device, run.dtype),
            args=SFTConfig(
                output_dir=f"{directory}/theirs",
                num_train_epochs=1,
                per_device_train_batch_size=8,
                learning_rate=1e-4,
                optim="adamw_torch_fused",
                bf16=True,
                use_cpu=not run.on_cuda,
                gradient_checkpointing=False,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=base_tokenizer(),
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        start = time.perf_counter()
        plain.train()
        times.append(time.perf_counter() - start)
    count = sum(map(len, ids))
    return count / times[0], count / times[1]


def base_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from adapters.settings import BUNDLED

    return AutoTokenizer.from_pretrained(BUNDLED / "bianlian-mini")


def training_memory(run: Run) -> None:
    """Peak memory of one step at a 6B shape: batch 1, length 2,048, rank 8 on all linear layers, checkpointing."""
    if not run.on_cuda:
        run.report("training memory", "needs CUDA")
        return
    shape = SHAPES["6b"] if run.shape_name == "8b" else run.shape
    speeds = {}
    for method, most in (("lora", 15_226), ("qlora", 8_422), ("full", 68_450)):
        if method == "qlora" and not importlib.util.find_spec("bitsandbytes"):
            run.report("qlora, peak memory", "not measured: bitsandbytes is not installed")
            continue
        step, length = training_step(run, shape, method, rank=8)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        speeds[method] = length / run.seconds(step, repeats=2)
        run.report(f"{method}, peak memory", torch.cuda.max_memory_reserved() / 2**20, "MiB", most=most)
        run.report(f"{method}, 6B", speeds[method], "tokens/s")
        del step
        gc.collect()
        torch.cuda.empty_cache()
    run.report("LoRA / full, 6B", speeds["lora"] / speeds["full"], "", least=2.0)


def training_step(run: Run, shape: Shape, method: str, rank: int = RANK) -> tuple[Callable[[], None], int]:
    """One step of a plain loop with gradient checkpointing, batch 1; and its tokens."""
    from peft import LoraConfig, get_peft_model

    model = build_model(shape, run.device, run.dtype)
    model.config.use_cache = False
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "full":
        model.requires_grad_(True)
    else:
        if method == "qlora":
            quantise(model)
        model.enable_input_require_grads()
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=run.on_cuda)
    ids = torch.randint(1, shape.vocabulary, (1, shape.length), device=run.device)

    def step() -> None:
        with torch.autocast(run.device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, shape.length


def quantise(model: Any) -> None:
    """Every linear layer of the blocks to 4 bits (nf4, double quantisation), in place."""
    import bitsandbytes as bnb

    for name, linear in list(model.named_modules()):
        if name.rsplit(".", 1)[-1] not in TARGETS:
            continue
        quantised = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        quantised.weight = bnb.nn.Params4bit(
            linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantised.to(linear.weight.device))
