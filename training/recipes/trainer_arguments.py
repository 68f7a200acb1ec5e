"""Keys that both dialects take over from transformers' TrainingArguments, older names included."""

from typing import Any

from training.recipes.recipe import (
    Fields,
    Keys,
    Rule,
    Unsupported,
    each,
    flag,
    is_off,
    mapping,
    nothing,
    number,
    only,
    refused,
    to,
    whole,
)

ALIASES = {
    "evaluation_strategy": "eval_strategy",
    "optimizer_type": "optim",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "no_cuda": "use_cpu",
}

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_SCHEDULES = ("cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup")


def _batch(value: Any, keys: Keys) -> Fields:
    """One process trains, so a step learns from rows in one pass times passes. KTO measures its reference over the
    rows of a pass, and one alone has none."""
    rows, passes = whole(keys["per_device_train_batch_size"]), whole(keys["gradient_accumulation_steps"])
    alone = rows == 1 and "kto" in (keys.get("stage"), keys.get("rlhf_type"))
    return {"micro_batch_size": None if alone else rows, "batch_size": rows * passes}


def _max_steps(value: Any, keys: Keys) -> Fields | str:
    steps = whole(value)
    return {"max_steps": steps} if steps > 0 else "as many as the epochs have"


def _schedule(value: Any, keys: Keys) -> Fields:
    if value not in _SCHEDULES:
        raise Unsupported(f"use one of {', '.join(_SCHEDULES)}")
    return {"schedule": value}


def _warmup(value: Any, keys: Keys) -> Fields:
    """Steps count when there are any, as transformers has it; a number of steps below 1 is a share."""
    steps, share = number(keys.get("warmup_steps", 0)), number(keys.get("warmup_ratio", 0))
    if steps and share:
        raise Unsupported("warmup_steps and warmup_ratio both say how long; keep one of them")
    if share >= 1:
        raise Unsupported("give a share below 1, or warmup_steps")
    if keys["lr_scheduler_type"] == "constant":
        return {"warmup": 0.0}  # there as well, whatever is asked
    return {"warmup": steps or share}


def _optimizer(value: Any, keys: Keys) -> Fields:
    if value not in _OPTIMIZERS:
        raise Unsupported(f"use one of {', '.join(_OPTIMIZERS)}")
    return {"optimizer": _OPTIMIZERS[value]}


def _neftune(value: Any, keys: Keys) -> Fields | str:
    return {"neftune_alpha": number(value)} if not is_off(value) else "off, as here"


def _saving(value: Any, keys: Keys) -> Fields:
    if keys.get("save_strategy", "steps") == "steps":
        steps = number(keys["save_steps"])
        if steps < 1:
            raise Unsupported("give a number of steps, not a share of them")
        return {"save_steps": whole(steps)}
    return {"save_steps": None}


def evaluating(value: Any, keys: Keys) -> Fields:
    """transformers looks every `logging_steps` when it is not told how often."""
    if keys.get("eval_strategy", "no") == "steps":
        steps = number(keys.get("eval_steps") or keys.get("logging_steps"))
        if steps < 1:
            raise Unsupported("give a number of steps, not a share of them")
        return {"eval_steps": whole(steps)}
    return {"eval_steps": None}


def _scheduler_options(value: Any, keys: Keys) -> Fields | str:
    if mapping(value):
        raise Unsupported("leave it out; schedules have no further options here")
    return "none, as here"


def _data_seed(value: Any, keys: Keys) -> Fields | str:
    if whole(value) != whole(keys["seed"]):
        raise Unsupported("leave it out; `seed` decides order and split as well")
    return "the seed decides order and split as well"


def _trains(value: Any, keys: Keys) -> Fields | str:
    if not flag(value):
        raise Unsupported("this command trains; use `bianlian eval` to judge a model")
    return "this command trains"


DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "logging_steps": 500,
    "save_strategy": "steps",
    "save_steps": 500,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "seed": 42,
}

RULES: dict[str, Rule] = {
    "per_device_train_batch_size": _batch,
    "gradient_accumulation_steps": _batch,
    "num_train_epochs": to("epochs", number),
    "max_steps": _max_steps,
    "learning_rate": to("learning_rate", number),
    "lr_scheduler_type": _schedule,
    "lr_scheduler_kwargs": _scheduler_options,
    "warmup_ratio": _warmup,
    "warmup_steps": _warmup,
    "optim": _optimizer,
    "weight_decay": to("weight_decay", number),
    "max_grad_norm": to("max_grad_norm", number),
    "neftune_noise_alpha": _neftune,
    "gradient_checkpointing": to("gradient_checkpointing", flag),
    "save_strategy": _saving,
    "save_steps": _saving,
    "eval_strategy": evaluating,
    "eval_steps": evaluating,
    "load_best_model_at_end": to("keep_best", flag),
    "seed": to("seed", whole),
    "data_seed": _data_seed,
    # Ours is fixed
    "adam_beta1": only(0.9, instead="is 0.9 here"),
    "adam_beta2": only(0.999, instead="is 0.999 here"),
    "adam_epsilon": only(1e-8, instead="is 1e-8 here"),
    "label_smoothing_factor": only(0, instead="leave it out; labels are not smoothed here"),
    "metric_for_best_model": only("loss", "eval_loss", None, instead="is the validation loss here"),
    "greater_is_better": only(False, None, instead="is the validation loss here, where less is better"),
    "eval_delay": only(0, instead="leave it out; validation begins with the run"),
    **each(refused("leave it out; AdamW has the options above"), "optim_args optim_target_modules"),
    "dataloader_drop_last": refused("leave it out; every row is learned from, also those of the last batch"),
    "use_cpu": refused("use --device cpu"),
    "auto_find_batch_size": refused("leave it out, and per_device_train_batch_size: --micro-batch-size is chosen then"),
    "resume_from_checkpoint": refused("use `bianlian train --resume RUN` for a run of ours"),
    "ignore_data_skip": refused("leave it out; a resumed run goes on with the rows that are left"),
    "push_to_hub": refused("use `bianlian adapters export`, then the hub's own command"),
    "hub_token": refused("set HF_TOKEN or MODELSCOPE_API_TOKEN; recipes are kept, and secrets should not be"),
    **each(refused("use `bianlian eval`"), "do_predict predict_with_generate"),
    "do_train": _trains,
    # Nothing to be said
    "do_eval": nothing("validation rows are looked at whenever there are any"),
    **each(
        nothing("every step is logged, and drawn"),
        "logging_steps logging_strategy logging_first_step logging_dir log_level log_level_replica log_on_each_node "
        "logging_nan_inf_filter include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics "
        "disable_tqdm debug",
    ),
    **each(
        nothing("the run keeps its own record (bianlian jobs show)"),
        "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id",
    ),
    **each(
        nothing("a run keeps its last two checkpoints until it is published"),
        "save_total_limit save_only_model save_on_each_node save_safetensors enable_jit_checkpoint "
        "restore_callback_states_from_checkpoint",
    ),
    "overwrite_output_dir": nothing("every run has a directory of its own"),
    **each(
        nothing("precision follows from the device and the base"),
        "bf16 fp16 tf32 bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level fp16_backend",
    ),
    **each(
        nothing("changes speed or memory, not what is learned"),
        "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
        "liger_kernel_config use_cache torch_empty_cache_steps per_device_eval_batch_size eval_accumulation_steps "
        "prediction_loss_only eval_do_concat_batches eval_use_gather_object batch_eval_metrics include_for_metrics "
        "include_inputs_for_metrics eval_on_start dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
        "dataloader_in_order remove_unused_columns label_names sortish_sampler group_by_length "
        "train_sampling_strategy length_column_name",
    ),
    **each(
        nothing("one process trains on one device"),
        "ddp_timeout ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
        "fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap deepspeed local_rank "
        "average_tokens_across_devices accelerator_config parallelism_config split_batches tpu_num_cores",
    ),
    "full_determinism": nothing("on a CPU equal seeds give equal runs"),
    **each(
        nothing("belongs to uploading"),
        "hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision push_to_hub_model_id "
        "push_to_hub_organization push_to_hub_token",
    ),
    **each(
        nothing("belongs to answering, not to training"),
        "generation_max_length generation_num_beams generation_config",
    ),
}
