"""ms-swift's flags, YAML and args.json: those of 4.x, and of 2.x, whose names and defaults seed documents still use.
A recipe is one of 2.x when it has a name that only 2.x has."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.hub import parse_reference
from training.recipes import trainer_arguments
from training.recipes.hub_names import adapter_name, base_of, enabled
from training.recipes.recipe import (
    WHOLE_BASE,
    Dialect,
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
    of_adapters,
    only,
    refused,
    text,
    to,
    whole,
    words,
)

ALIASES = {
    **trainer_arguments.ALIASES,
    "train_type": "tuner_type",  # 3.x
    "sft_type": "tuner_type",  # 2.x
    "model_id_or_path": "model",
    "template_type": "template",
    "tools_prompt": "agent_template",
    "custom_train_dataset_path": "dataset",
    "custom_val_dataset_path": "val_dataset",
    "dataset_test_ratio": "split_dataset_ratio",
    "dataset_seed": "data_seed",
    "train_dataset_sample": "max_samples",
    "batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "dtype": "torch_dtype",
    "quantization_bit": "quant_bits",
    "bnb_4bit_comp_dtype": "bnb_4bit_compute_dtype",
    "lora_target_modules": "target_modules",
    "lora_target_regex": "target_regex",
    "lora_modules_to_save": "modules_to_save",
    "lora_dropout_p": "lora_dropout",
    "lora_bias_trainable": "lora_bias",
    "lora_lr_ratio": "lorap_lr_ratio",
    "lora_plus_lr_ratio": "lorap_lr_ratio",
    "init_lora_weights": "init_weights",
    "neftune_alpha": "neftune_noise_alpha",
    "only_save_model": "save_only_model",
    "preprocess_num_proc": "dataset_num_proc",
    "use_flash_attn": "attn_impl",
    "use_liger": "use_liger_kernel",
    "loss_name": "loss_type",
    "custom_register_path": "external_plugins",
    "streaming_buffer_size": "shuffle_buffer_size",
    "sequence_parallel": "sequence_parallel_size",
}

# Names that nothing later than 2.x takes.
_SWIFT_2 = {
    "sft_type",
    "model_id_or_path",
    "template_type",
    "custom_train_dataset_path",
    "custom_val_dataset_path",
    "dataset_test_ratio",
    "train_dataset_sample",
    "val_dataset_sample",
    "batch_size",
    "eval_batch_size",
    "lora_dropout_p",
    "lora_target_modules",
    "lora_bias_trainable",
    "self_cognition_sample",
    "check_dataset_strategy",
}

# --- the base ---


def _base(value: Any, keys: Keys) -> Fields:
    hugging_face = flag(keys.get("use_hf", False)) or enabled("USE_HF")
    return {"base": base_of(text(value), keys.get("model_revision"), "hf" if hugging_face else "modelscope")}


def _model_type(value: Any, keys: Keys) -> Fields | str:
    if keys.get("model") or "base" in keys.ours:
        return "the base says itself what it is"
    raise Unsupported("names no place to load from; say --base DIRECTORY, --base modelscope:org/model or bianlian-mini")


# --- the method ---


def _objective(value: Any, keys: Keys) -> Fields:
    kind = keys["rlhf_type"]
    if kind not in ("dpo", "kto", "orpo"):
        raise Unsupported(f"'{kind}' is not there; use dpo, kto or orpo")
    return {"objective": kind}


def _chat_template(value: Any, keys: Keys) -> Fields | str:
    """`swift pt` writes false into its args.json."""
    return "is used" if flag(value) else {"objective": "pretrain"}


def _beta(value: Any, keys: Keys) -> Fields | str:
    if is_off(value):
        return "by the objective"
    return {"beta": number(value)} if keys.get("rlhf_type") else "means nothing without rlhf_type"


def _loss_type(value: Any, keys: Keys) -> Fields | str:
    names = words(value)
    if is_off(value) or not names:
        return "by the objective"
    if keys.get("rlhf_type") == "dpo" and names == ("sigmoid",) or names == ("kto",):
        return "as here"
    raise Unsupported("leave it out, or use rlhf_type orpo; DPO is sigmoid here")


def _method(value: Any, keys: Keys) -> Fields:
    kind, bits, by = keys["tuner_type"], keys.get("quant_bits"), keys.get("quant_method")
    if kind not in ("lora", "full"):
        raise Unsupported(f"'{kind}' is not there; use lora or full")
    if is_off(bits):
        return {"method": kind}
    if kind == "full":
        raise Unsupported("a quantised base cannot be trained in full; use tuner_type lora")
    if whole(bits) != 4 or by not in (None, "bnb"):
        raise Unsupported("use quant_bits 4 and quant_method bnb (QLoRA), or neither")
    return {"method": "qlora"}


def _targets(value: Any, keys: Keys) -> Fields:
    names = words(value)
    if {"all-linear", "ALL"} & set(names):
        return {"targets": ()}
    if {"DEFAULT", "AUTO"} & set(names):  # of 2.x: by model, and these for Llama's kind
        return {"targets": ("q_proj", "k_proj", "v_proj")}
    if {"all-embedding", "all-router"} & set(names):
        raise Unsupported("use all-linear, or names of linear layers")
    return {"targets": names}


def _initialisation(value: Any, keys: Keys) -> Fields:
    kind = text(value).lower()
    if kind.startswith("pissa"):
        return {"init": "pissa"}
    if kind not in ("true", "gaussian", "olora"):
        raise Unsupported(f"'{value}' is not there; use true, gaussian, pissa or olora")
    return {"init": "default" if kind == "true" else kind}


def _loraplus(value: Any, keys: Keys) -> Fields | str:
    return {"loraplus_ratio": number(value)} if not is_off(value) else "off, as here"


def _optimizer(value: Any, keys: Keys) -> Fields | str:
    if value == "lorap" and not is_off(keys.get("lorap_lr_ratio")):
        return "LoRA+, as lorap_lr_ratio says"
    raise Unsupported("leave it out; `optim` chooses among kinds of AdamW")


# --- the data ---


def _dataset(value: Any, keys: Keys) -> Fields:
    """Paths and ids, each with `:subset` and `#rows` where given."""
    names, counts = _places(value, keys)
    fields: Fields = {"data": names}
    if len(counts) > 1:
        raise Unsupported("#N differs among the data sets; cut them with `bianlian data split`, or give one number")
    if counts != {None}:
        fields["max_samples"] = counts.pop()
    return fields


def _validation(value: Any, keys: Keys) -> Fields | str:
    if is_off(value):
        return "none"
    names, counts = _places(value, keys)
    if counts != {None}:
        raise Unsupported("#N is not there for validation data; give a file of that many rows")
    return {"validation_data": names}


def _places(value: Any, keys: Keys) -> tuple[tuple[str, ...], set[int | None]]:
    hugging_face = flag(keys.get("use_hf", False)) or enabled("USE_HF")
    entries = value if isinstance(value, list | tuple) else [value] if Path(value).exists() else text(value).split()
    names: list[str] = []
    counts: set[int | None] = set()
    for entry in entries:
        name, _, count = str(entry).partition("#")
        hub, prefixed, rest = name.partition("::")
        if prefixed:
            hugging_face, name = hub.upper() == "HF", rest
        if not Path(name).expanduser().exists():
            name, _, subset = name.partition(":")
            if parse_reference(name) and not name.endswith((".json", ".jsonl", ".csv", ".txt", ".tsv", ".parquet")):
                if subset not in ("", "default"):
                    raise Unsupported(f"subset '{subset}'; name the file, as --data modelscope:{name}:FILE")
                name = f"{'hf' if hugging_face else 'modelscope'}:{name}"
        names.append(name)
        counts.add(whole(count) if count else None)
    return tuple(names), counts


def _max_samples(value: Any, keys: Keys) -> Fields | str:
    return {"max_samples": whole(value)} if whole(value) > 0 else "all rows"


def _val_share(value: Any, keys: Keys) -> Fields:
    """A data set of its own for validation takes the place of a split, there and here."""
    return {"val_split": 0.0 if keys.get("val_dataset") else number(value)}


def _max_length(value: Any, keys: Keys) -> Fields:
    return {"max_length": WHOLE_BASE if value == "all" else whole(value)}


def _system(value: Any, keys: Keys) -> Fields | str:
    """A text, or the path of a .txt file with it."""
    prompt = text(value)
    if prompt.endswith(".txt") and "\n" not in prompt:
        try:
            prompt = Path(prompt).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{prompt} cannot be read: {error.strerror}") from None
    return {"system": prompt} if prompt else "none"


def _loss_scale(value: Any, keys: Keys) -> Fields | str:
    kind = text(value)
    if kind == "last_round" or kind.startswith("last_round+"):
        return {"mask_history": True} if not keys.get("rlhf_type") else "preferences are learned in the last turn"
    if kind == "default" or (kind == "all" and is_off(keys.get("use_chat_template", True))):
        return "as here"
    raise Unsupported('leave it out; messages rows say with "loss" which turns are learned')


def _truncation(value: Any, keys: Keys) -> Fields | str:
    if value in ("delete", "right", None, ""):
        return "a row too long keeps its first turns that fit whole; with none it is left out"
    raise Unsupported("leave it out; a row too long keeps its first turns that fit whole")


def _packing(value: Any, keys: Keys) -> Fields:
    return {"packing": flag(value)}


def _columns(value: Any, keys: Keys) -> Fields | str:
    if is_off(value) or not mapping(value):
        return "none"
    raise Unsupported("write a dataset_info.json with `columns`, and use --dataset NAME --dataset-dir DIR")


def _weights(value: Any, keys: Keys) -> Fields | str:
    return {"data_weights": tuple(number(share) for share in words(value))} if not is_off(value) else "none"


def _self_cognition(value: Any, keys: Keys) -> Fields | str:
    if is_off(value) or not [name for name in words(value) if name != "None"]:
        return "none"
    raise Unsupported("write the names into the data; {{NAME}} and {{AUTHOR}} are not replaced here")


def _name(value: Any, keys: Keys) -> Fields | str:
    name = adapter_name(text(value))
    return {"name": name} if name else "the run is kept under BIANLIAN_HOME/runs"


def _evaluating(value: Any, keys: Keys) -> Fields | str:
    if is_off(keys["split_dataset_ratio"]) and is_off(keys.get("val_dataset")):
        return "there is no validation data"
    return trainer_arguments.evaluating(value, keys)


def _early_stopping(value: Any, keys: Keys) -> Fields | str:
    return {"early_stopping": whole(value)} if not is_off(value) else "off, as here"


def _callbacks(value: Any, keys: Keys) -> Fields | str:
    if set(words(value)) <= {"early_stop"}:  # written down for early_stop_interval
        return "as early_stop_interval says" if words(value) else "none"
    raise Unsupported("leave it out; code of one's own is not run")


def _empty(value: Any, keys: Keys) -> Fields | str:
    if is_off(value) or not [word for word in words(value) if word]:
        return "none"
    raise Unsupported("leave it out; the base and its layers are trained as they are")


RULES: dict[str, Rule] = {
    **trainer_arguments.RULES,
    # The base
    "model": _base,
    "model_type": _model_type,
    "model_revision": nothing("pins the base"),
    "use_hf": nothing("says which hub an id is of"),
    "adapters": refused("leave it out; training begins at the base (`bianlian train --resume` goes on)"),
    "torch_dtype": nothing("precision follows from the device and the base"),
    **each(_empty, "new_special_tokens modules_to_save freeze_parameters trainable_parameters target_parameters"),
    **each(
        refused("leave it out; the base is trained as it is"),
        "rope_scaling external_plugins model_kwargs local_repo_path freeze_parameters_regex freeze_parameters_ratio "
        "trainable_parameters_regex target_regex additional_trainable_parameters init_strategy num_labels",
    ),
    "task_type": only("causal_lm", None, instead="use a model that answers; its task is causal_lm"),
    **each(
        nothing("how the base is loaded follows from the base"),
        "device_map max_memory max_model_len device_map_config device_map_config_path device_max_memory "
        "problem_type check_model check_model_is_latest model_cache_dir gpu_memory_fraction",
    ),
    **each(
        nothing("changes speed or memory, not what is learned"),
        "attn_impl experts_impl tuner_backend padding_free use_logits_to_keep lazy_tokenize sequence_parallel_size "
        "vit_gradient_checkpointing lora_dtype enable_npu_model_patch packing_num_proc packing_strategy "
        "packing_length template_backend padding_side use_flash_ckpt vit_use_gc neftune_backend",
    ),
    "quant_method": _method,
    "quant_bits": _method,
    "bnb_4bit_quant_type": only("nf4", instead="use nf4"),
    "bnb_4bit_use_double_quant": only(True, instead="is always on"),
    **each(
        nothing("follows from the base"),
        "bnb_4bit_compute_dtype bnb_4bit_quant_storage hqq_axis hqq_dynamic_config_path",
    ),
    # The method
    "rlhf_type": _objective,
    "tuner_type": _method,
    "lora_rank": of_adapters(to("lora_r", whole)),
    "lora_alpha": of_adapters(to("lora_alpha", whole)),
    "lora_dropout": of_adapters(to("lora_dropout", number)),
    "lora_bias": only("none", instead="use none; biases stay the base's"),
    "target_modules": of_adapters(_targets),
    "use_rslora": of_adapters(to("use_rslora", flag)),
    "use_dora": of_adapters(to("use_dora", flag)),
    "init_weights": of_adapters(_initialisation),
    "lorap_lr_ratio": of_adapters(_loraplus),
    "optimizer": _optimizer,
    "beta": _beta,
    "loss_type": _loss_type,
    "use_chat_template": _chat_template,
    **each(
        refused("leave it out; the loss has no such term here"),
        "rpo_alpha ld_alpha label_smoothing loss_weights enable_dft_loss enable_channel_loss use_loss_scale "
        "is_binary_loss_scale router_aux_loss_coef mrl_dims reference_free",
    ),
    **each(
        only(1.0, instead="rows weigh the same here; balance them in the data"), "desirable_weight undesirable_weight"
    ),
    **each(
        refused("leave it out; the reference is the base itself"),
        "ref_model ref_adapters ref_model_type ref_model_revision reward_model reward_adapters reward_model_type "
        "teacher_model teacher_adapters reward_funcs ref_model_id_or_path reward_model_id_or_path",
    ),
    **each(
        refused("use tuner_type lora"),
        "use_galore lisa_activated_layers use_swift_lora",
    ),
    **each(
        refused("leave it out"),
        "eval_use_evalscope resume_only_model min_lr vit_lr aligner_lr test_oom_error",
    ),
    **each(
        nothing("belongs to what is off"),
        "freeze_llm freeze_vit freeze_aligner lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction "
        "lora_ga_scale lora_ga_stable_gamma fourier_n_frequency fourier_scaling boft_block_size boft_block_num "
        "boft_n_butterfly_factor boft_dropout boft_target_modules boft_modules_to_save vera_rank "
        "vera_projection_prng_key vera_dropout vera_d_initial vera_target_modules vera_modules_to_save adapter_act "
        "adapter_length adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1 "
        "adalora_beta2 adalora_orth_reg_weight ia3_target_modules ia3_modules_to_save ia3_feedforward_modules "
        "llamapro_num_new_blocks llamapro_num_groups reft_layer_key reft_layers reft_rank reft_intervention_type "
        "reft_args lisa_step_interval galore_target_modules galore_rank galore_update_proj_gap galore_scale "
        "galore_proj_type galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant "
        "galore_proj_bits galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size "
        "discopop_tau cpo_alpha simpo_gamma center_rewards_coefficient sft_alpha lmbda seq_kd gkd_logits_topk "
        "ref_adapter_name reward_model_revision reward_template teacher_model_revision teacher_model_type "
        "teacher_deepspeed teacher_model_server offload_teacher_model num_ppo_epochs whiten_rewards kl_coef cliprange "
        "vf_coef cliprange_value gamma lam num_mini_batches local_rollout_forward_batch_size num_sample_generations "
        "response_length missing_eos_penalty reward_weights log_completions num_iterations",
    ),
    # The data
    "dataset": _dataset,
    "val_dataset": _validation,
    "split_dataset_ratio": _val_share,
    "max_samples": _max_samples,
    "val_dataset_sample": only(-1, 0, None, instead="leave it out; split_dataset_ratio says how many"),
    "max_length": _max_length,
    "truncation_strategy": _truncation,
    "template": nothing("the base's own chat template renders, in training and serving alike"),
    "agent_template": nothing("the base's own chat template writes tools and calls"),
    "system": _system,
    "enable_thinking": to("thinking", flag),
    **each(
        nothing("thoughts are as the base's chat template has them"),
        "preserve_thinking add_non_thinking_prefix disable_ignore_empty_think",
    ),
    "response_prefix": refused("leave it out; answers begin as the base's chat template has them"),
    "loss_scale": _loss_scale,
    "loss_scale_config_path": nothing("belongs to what is off"),
    "packing": _packing,
    "columns": _columns,
    "strict": to("strict", flag),
    "interleave_prob": _weights,
    **each(_self_cognition, "model_name model_author"),
    "self_cognition_sample": refused("add a data set about who it is"),
    "train_dataset_mix_ratio": refused("use --replay-data FILE --replay-share 0.1"),
    **each(refused("use --dataset-dir with LLaMA-Factory's dataset_info.json"), "custom_dataset_info"),
    **each(refused("give the files themselves"), "cached_dataset cached_val_dataset"),
    **each(
        only(True, instead="leave it out; the seed decides the order of rows"),
        "dataset_shuffle train_dataloader_shuffle",
    ),
    **each(
        nothing("files are read whole"),
        "streaming shuffle_buffer_size streaming_val_size stopping_strategy dataset_num_proc load_from_cache_file "
        "download_mode val_dataset_shuffle disable_auto_column_mapping check_dataset_strategy train_dataset_mix_ds",
    ),
    **each(nothing("text only"), "max_pixels norm_bbox rescale_image"),
    # The run
    "output_dir": _name,
    **each(_evaluating, "eval_strategy eval_steps"),
    "early_stop_interval": _early_stopping,
    "callbacks": _callbacks,
    "ENV": refused("set environment variables before the command"),
    "max_epochs": refused("use num_train_epochs"),
    **each(
        nothing("every run has a directory of its own, and records its losses and speed"),
        "add_version create_checkpoint_symlink acc_strategy eval_metric metric metric_warmup_step acc_steps "
        "add_output_dir_suffix load_args load_data_args ignore_args_error max_shard_size safe_serialization "
        "eval_dataset eval_dataset_args eval_limit eval_generation_config extra_eval_args "
        "push_hub_strategy",
    ),
    **each(
        nothing("the run keeps its own record (bianlian jobs show)"),
        "swanlab_token swanlab_project swanlab_workspace swanlab_exp_name swanlab_notification_method "
        "swanlab_webhook_url swanlab_secret swanlab_sender_email swanlab_receiver_email swanlab_smtp_server "
        "swanlab_smtp_port swanlab_email_language swanlab_mode",
    ),
    **each(
        nothing("one process trains on one device"),
        "use_ray ray_exp_name device_groups zero_hpz_partition_size deepspeed_autotp_size deepspeed_config_path "
        "ds3_gather_for_generation fsdp_num model_layer_cls_name train_backend tp pp",
    ),
    **each(
        nothing("belongs to answering, not to training"),
        "max_new_tokens temperature top_k top_p repetition_penalty num_beams do_sample stream stop_words logprobs "
        "top_logprobs structured_outputs_regex num_return_sequences max_completion_length num_generations",
    ),
    **each(
        nothing("was written down by ms-swift about its own run"),
        "swift_version rank global_world_size local_world_size world_size model_suffix model_info model_meta "
        "template_meta mixed_precision hub model_dir ckpt_dir training_args tensorboard_dir _val_dataset_exists _n_gpu "
        "distributed_state deepspeed_plugin fsdp_plugin_args hf_deepspeed_config args_error megatron_model_meta",
    ),
}


def _defaults(asked: Mapping[str, Any]) -> dict[str, Any]:
    full = asked.get("tuner_type") == "full"
    batch = whole(asked.get("per_device_train_batch_size", 1))
    defaults = {
        **trainer_arguments.DEFAULTS,
        "tuner_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": ["all-linear"],
        "learning_rate": 1e-5 if full else 1e-4,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": max(1, -(-16 // batch)),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "split_dataset_ratio": 0.0,
        "max_length": "all",
        "logging_steps": 5,
    }
    if asked.get("rlhf_type"):
        defaults["beta"] = 0.1
    if "eval_strategy" not in asked:  # follows save_strategy
        defaults["eval_strategy"] = asked.get("save_strategy", "steps")
        defaults["eval_steps"] = asked.get("save_steps", defaults["save_steps"])
    if "warmup_ratio" in asked:
        del defaults["warmup_steps"]
    return defaults


def _defaults_of_2(asked: Mapping[str, Any]) -> dict[str, Any]:
    steps = asked.get("eval_steps", 200 if asked.get("tuner_type") == "full" else 50)
    defaults = _defaults(asked) | {
        "num_train_epochs": 1,
        "warmup_ratio": 0.05,
        "split_dataset_ratio": 0.01,
        "max_length": 2048,
        "target_modules": ["DEFAULT"],
        "save_steps": steps,
        "eval_steps": steps,
    }
    defaults.pop("warmup_steps", None)
    if "warmup_steps" in asked:
        del defaults["warmup_ratio"]
    return defaults


SWIFT = Dialect("ms-swift", RULES, _defaults, ALIASES)
SWIFT_2 = Dialect("ms-swift 2", RULES, _defaults_of_2, ALIASES)


def dialect_of(keys: Mapping[str, Any] | set[str]) -> Dialect:
    return SWIFT_2 if _SWIFT_2 & {re.sub("^-+", "", key) for key in keys} else SWIFT
