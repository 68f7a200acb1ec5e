"""The sampling drawer, the same in every tab."""

from dataclasses import replace

import gradio as gr

from adapters.errors import Invalid
from serving.chat import ChatService, random_seed
from serving.engine.sequence import SamplingParams
from serving.ui.texts import t

DEFAULT_MAX_TOKENS = 256
MAX_SEED = 2**31 - 1

Values = tuple[float, float, float, float]  # what the drawer's four widgets send


def sampling_drawer(chat: ChatService) -> list[gr.Component]:
    """Temperature, top-p, top-k and length; their values make `Values`."""
    advised = chat.default_params()
    longest = chat.engine.engine.max_model_len
    with gr.Row():
        temperature = gr.Slider(0, 2, advised.temperature, step=0.05, label=t("temperature"), min_width=150)
        top_p = gr.Slider(0.05, 1, advised.top_p, step=0.05, label=t("top_p"), min_width=150)
        top_k = gr.Slider(0, 200, advised.top_k, step=1, label=t("top_k"), min_width=150)
        max_tokens = gr.Slider(
            1, longest, min(DEFAULT_MAX_TOKENS, longest), step=1, label=t("max_tokens"), min_width=150
        )
    return [temperature, top_p, top_k, max_tokens]


def params_from(chat: ChatService, values: Values, seed: float | None) -> tuple[SamplingParams, int]:
    """Parameters and length limit as chosen on the page; without a seed, a new one."""
    temperature, top_p, top_k, max_tokens = values
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise Invalid(f"seed {seed:.0f} must be from 0 to {MAX_SEED}", param="seed")
    params = replace(
        chat.default_params(),
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        seed=random_seed() if seed is None else int(seed),
    )
    return params, int(max_tokens)
