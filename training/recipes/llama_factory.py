"""LLaMA-Factory's YAML (examples/train_lora and its kin), read as of August 2026. What it says of answering,
exporting and multi-modal input is no part of a training run here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.recipes import trainer_arguments
from training.recipes.hub_names import adapter_name, base_of, enabled
from training.recipes.recipe import (
    Dialect,
    Fields,
    Keys,
    Rule,
    Unsupported,
    each,
    flag,
    is_off,
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

# --- the base ---


def _base(value: Any, keys: Keys) -> Fields:
    hub = "modelscope" if enabled("USE_MODELSCOPE_HUB") else "hf"
    return {"base": base_of(text(value), keys.get("model_revision"), hub)}


# --- the method ---


def _objective(value: Any, keys: Keys) -> Fields:
    stage = keys["stage"]
    if stage == "dpo":
        loss = keys["pref_loss"]
        if loss not in ("sigmoid", "orpo"):
            raise Unsupported(f"'{loss}' is not there; use sigmoid (DPO) or orpo, or stage kto")
        return {"objective": "orpo" if loss == "orpo" else "dpo"}
    if stage not in ("sft", "pt", "kto"):
        raise Unsupported(f"'{stage}' needs a reward model; use dpo, which learns from preferences directly")
    return {"objective": {"sft": "sft", "pt": "pretrain", "kto": "kto"}[stage]}


def _of_preferences(rule: Rule) -> Rule:
    def only_there(value: Any, keys: Keys) -> Fields | str:
        return rule(value, keys) if keys["stage"] in ("dpo", "kto") else f"means nothing at stage {keys['stage']}"

    return only_there


def _method(value: Any, keys: Keys) -> Fields:
    kind, bits = keys["finetuning_type"], keys.get("quantization_bit")
    if kind not in ("lora", "full"):
        raise Unsupported(f"'{kind}' is not there; use finetuning_type lora or full")
    if is_off(bits):
        return {"method": kind}
    if kind == "full":
        raise Unsupported("a quantised base cannot be trained in full; use finetuning_type lora")
    if whole(bits) != 4:
        raise Unsupported(f"{bits} bits are not there; use quantization_bit 4 (QLoRA), or none")
    return {"method": "qlora"}


def _rank(value: Any, keys: Keys) -> Fields:
    """With theirs for alpha, which is twice the rank, for rsLoRA too."""
    rank = whole(value)
    return {"lora_r": rank} if "lora_alpha" in keys.values else {"lora_r": rank, "lora_alpha": 2 * rank}


def _targets(value: Any, keys: Keys) -> Fields:
    names = words(value)
    return {"targets": () if "all" in names else names}


def _pissa(value: Any, keys: Keys) -> Fields | str:
    return {"init": "pissa"} if flag(value) else "off, as here"


def _loraplus(value: Any, keys: Keys) -> Fields | str:
    return {"loraplus_ratio": number(value)} if not is_off(value) else "off, as here"


def _checkpointing(value: Any, keys: Keys) -> Fields:
    return {"gradient_checkpointing": not flag(value)}


# --- the data ---


def _dataset_dir(value: Any, keys: Keys) -> Fields | str:
    where = text(value)
    if where == "ONLINE" or where.startswith("REMOTE:"):
        raise Unsupported("use --data hf:owner/name or modelscope:owner/name")
    return {"dataset_dir": where} if keys.get("dataset") else "there is no dataset"


def _validation(value: Any, keys: Keys) -> Fields:
    """Names of the same list, which `validation_data` takes as `dataset_info.json:NAME`."""
    info = Path(text(keys["dataset_dir"])) / "dataset_info.json"
    return {"validation_data": tuple(f"{info}:{name}" for name in words(value))}


def _max_samples(value: Any, keys: Keys) -> Fields:
    return {"max_samples": whole(value)}


def _val_size(value: Any, keys: Keys) -> Fields:
    share = number(value)
    if share >= 1:
        raise Unsupported("is a number of rows; give a share of them, such as 0.1")
    if share > 0.5:
        raise Unsupported("more than half of the rows; give at most 0.5")
    return {"val_split": share}


def _mixing(value: Any, keys: Keys) -> Fields | str:
    strategy, shares = keys.get("mix_strategy", "concat"), keys.get("interleave_probs")
    if strategy == "concat":
        return "files follow each other"
    if strategy not in ("interleave_under", "interleave_once"):
        raise Unsupported(f"'{strategy}' repeats rows; use concat, or interleave_under with probabilities")
    count = len(words(keys.get("dataset", ())))
    return {"data_weights": tuple(number(share) for share in words(shares)) if shares else (1.0,) * count}


def _packing(value: Any, keys: Keys) -> Fields:
    """Rows in one pack never see each other here, which is what they call neat."""
    return {"packing": flag(keys.get("packing", False)) or flag(keys.get("neat_packing", False))}


def _thinking(value: Any, keys: Keys) -> Fields:
    return {"thinking": flag(value)}


def _system(value: Any, keys: Keys) -> Fields | str:
    return {"system": text(value)} if text(value) else "none"


def _name(value: Any, keys: Keys) -> Fields | str:
    name = adapter_name(text(value))
    return {"name": name} if name else "the run is kept under BIANLIAN_HOME/runs"


RULES: dict[str, Rule] = {
    **trainer_arguments.RULES,
    # The base
    "model_name_or_path": _base,
    "model_revision": nothing("pins the base"),
    "trust_remote_code": nothing("code from a repository is never run; transformers' own architectures need none"),
    "adapter_name_or_path": refused("leave it out; training begins at the base (`bianlian train --resume` goes on)"),
    **each(nothing("HF_HOME and MODELSCOPE_CACHE say where downloads go"), "cache_dir adapter_folder offload_folder"),
    **each(refused("set HF_TOKEN or MODELSCOPE_API_TOKEN; recipes are kept"), "hf_hub_token ms_hub_token om_hub_token"),
    **each(
        nothing("how the base is loaded follows from the base"),
        "use_fast_tokenizer low_cpu_mem_usage print_param_status infer_dtype use_v1_kernels init_special_tokens",
    ),
    **each(
        nothing("changes speed or memory, not what is learned"),
        "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_reentrant_gc upcast_layernorm "
        "upcast_lmhead_output use_kv_cache infer_backend",
    ),
    "disable_gradient_checkpointing": _checkpointing,
    **each(
        refused("leave it out; the base is trained as it is"),
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config rope_scaling shift_attn "
        "mixture_of_depths moe_aux_loss_coef train_from_scratch use_llama_pro split_special_tokens",
    ),
    **each(
        refused("leave it out: AdamW trains here; finetuning_type lora saves more memory"),
        "use_galore use_apollo use_badam use_adam_mini use_muon",
    ),
    **each(
        refused("leave it out: one process trains on one device"),
        "use_kt use_mca use_megatron_bridge use_hyper_parallel",
    ),
    "quantization_bit": _method,
    "quantization_method": only("bnb", "bitsandbytes", instead="use bnb"),
    "quantization_type": only("nf4", instead="use nf4"),
    "double_quantization": only(True, instead="is always on"),
    "quantization_device_map": nothing("one device"),
    # The method
    "stage": _objective,
    "finetuning_type": _method,
    "lora_rank": of_adapters(_rank),
    "lora_alpha": of_adapters(to("lora_alpha", whole)),
    "lora_dropout": of_adapters(to("lora_dropout", number)),
    "lora_target": of_adapters(_targets),
    "additional_target": refused("leave it out; layers beside the LoRA ones stay as they are"),
    "use_rslora": of_adapters(to("use_rslora", flag)),
    "use_dora": of_adapters(to("use_dora", flag)),
    "pissa_init": of_adapters(_pissa),
    "pissa_iter": nothing("how exactly PiSSA decomposes"),
    "pissa_convert": nothing("what is published is plain LoRA always"),
    "loraplus_lr_ratio": of_adapters(_loraplus),
    "loraplus_lr_embedding": nothing("embeddings have no LoRA here"),
    "create_new_adapter": nothing("every run makes a new adapter"),
    "pref_loss": _of_preferences(_objective),
    "pref_beta": _of_preferences(to("beta", number)),
    **each(
        refused("leave it out; the loss has no such term here"),
        "pref_ftx pref_bco_weight dpo_label_smoothing ld_alpha use_dft_loss use_asft_loss use_eaft_loss",
    ),
    **each(
        only(1.0, instead="rows weigh the same here; balance them in the data"), "kto_chosen_weight kto_rejected_weight"
    ),
    **each(
        refused("leave it out; the reference is the base itself"),
        "ref_model ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters "
        "reward_model_quantization_bit",
    ),
    "disable_shuffling": refused("leave it out; the seed decides the order of rows"),
    "early_stopping_steps": to("early_stopping", whole),
    "pure_bf16": nothing("precision follows from the device and the base"),
    **each(
        nothing("every run records its losses and speed"),
        "plot_loss compute_accuracy include_effective_tokens_per_second",
    ),
    # The data
    "dataset": to("dataset", words),
    "dataset_dir": _dataset_dir,
    "eval_dataset": _validation,
    "template": nothing("the base's own chat template renders, in training and serving alike"),
    "cutoff_len": to("max_length", whole),
    "max_samples": _max_samples,
    "val_size": _val_size,
    "train_on_prompt": refused('leave it out; a turn with "loss": true is learned, in messages rows'),
    "mask_history": to("mask_history", flag),
    "mix_strategy": _mixing,
    "interleave_probs": _mixing,
    "packing": _packing,
    "neat_packing": _packing,
    "default_system": _system,
    "enable_thinking": _thinking,
    "preserve_thinking": refused("leave it out; thoughts of earlier turns are as the base's chat template has them"),
    "tool_format": nothing("the base's own chat template writes tools and calls"),
    "tokenized_path": refused("leave it out; rows are rendered anew"),
    "ignore_pad_token_for_loss": only(True, instead="padding is never learned"),
    "eval_on_each_dataset": refused("leave it out; one loss over all validation rows"),
    **each(
        nothing("files are read whole"),
        "streaming buffer_size overwrite_cache preprocessing_batch_size preprocessing_num_workers "
        "data_shared_file_system",
    ),
    # The run
    "output_dir": _name,
    **each(
        nothing("belongs to what is off, or not to a training run"),
        "eval_num_beams media_dir image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches "
        "video_max_pixels video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate "
        "freeze_vision_tower freeze_multi_modal_projector freeze_language_model "
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules "
        "module_dropout oft_rank oft_block_size oft_target simpo_gamma "
        "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards reward_model_type "
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type galore_layerwise "
        "apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj apollo_proj_type "
        "apollo_scale_type apollo_layerwise apollo_scale_front "
        "badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
        "badam_verbose asft_alpha eaft_alpha hyper_parallel_args hyper_parallel_cp_size "
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path kt_use_lora_experts "
        "kt_lora_expert_num kt_lora_expert_intermediate_size kt_config "
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id "
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config "
        "sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend "
        "do_sample temperature top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty "
        "skip_special_tokens",
    ),
    **each(
        nothing("the run keeps its own record (bianlian jobs show)"),
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
    ),
    **each(
        nothing("one process trains on one device"),
        "ray_num_workers ray_init_kwargs ray_run_name ray_storage_path ray_storage_filesystem resources_per_worker "
        "placement_strategy master_addr master_port",
    ),
    **each(refused("leave it out"), "fp8 fp8_enable_fsdp_float8_all_gather"),
    **each(
        nothing("belongs to what is off, or not to a training run"),
        "fp8_backend enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps "
        "profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory profiler_with_stack "
        "profile_modules",
    ),
}


def _defaults(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those of its command line; the web page of the same project fills in others (batch 2 × 8, cosine). Texts are
    packed at stage pt there and here."""
    defaults = {
        **trainer_arguments.DEFAULTS,
        "stage": "sft",
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "dataset_dir": "data",
        "val_size": 0.0,
    }
    if "warmup_ratio" in asked:
        del defaults["warmup_steps"]
    return defaults


LLAMA_FACTORY = Dialect("LLaMA-Factory", RULES, _defaults, trainer_arguments.ALIASES)
