"""Every word on the page, in Chinese and English.

Labels go to the browser in both languages, which picks its own (`translations`, `t`). Lines that carry numbers or
names are written here on the server, in the language of the request (`say`)."""

from typing import Literal

import gradio as gr

Language = Literal["zh", "en"]

LABELS: dict[str, tuple[str, str]] = {
    "subtitle": (
        "一个底座，百变面孔：同一个模型，随时换上不同的 LoRA",
        "One base model, many faces: LoRA adapters, swapped live",
    ),
    "tab_chat": ("对话", "Chat"),
    "tab_compare": ("对比", "Compare"),
    "model": ("模型", "Model"),
    "lane_a": ("甲", "Lane A"),
    "lane_b": ("乙", "Lane B"),
    "lane_c": ("丙", "Lane C"),
    "lane_d": ("丁", "Lane D"),
    "lane_count": ("栏数", "Lanes"),
    "strength": ("强度", "Strength"),
    "system": ("系统提示词", "System prompt"),
    "system_default": ("留空：使用该模型自带的提示词", "Empty: the model's own prompt"),
    "question": ("问题", "Question"),
    "question_hint": ("说点什么…（回车发送）", "Say something… (Enter sends)"),
    "compare_hint": ("同一个问题，各栏同时作答（回车发送）", "One question, every lane answers at once (Enter sends)"),
    "examples": ("试试这些问题", "Try one of these"),
    "send_button": ("发送", "Send"),
    "stop_button": ("停止", "Stop"),
    "regenerate": ("重新生成", "Regenerate"),
    "undo_button": ("撤回", "Undo"),
    "clear_button": ("清空", "Clear"),
    "sampling": ("采样设置", "Sampling"),
    "temperature": ("温度", "Temperature"),
    "top_p": ("Top-p", "Top-p"),
    "top_k": ("Top-k（0 为不限）", "Top-k (0: all)"),
    "max_tokens": ("最多生成 token 数", "Max new tokens"),
    "seed": ("随机种子", "Seed"),
    "seed_chat_info": ("留空：每次不同", "Empty: new each time"),
    "seed_shared": ("随机种子（各栏共用）", "Seed (shared by all lanes)"),
    "dice": ("换种子", "New dice"),
}

LINES: dict[str, tuple[str, str]] = {
    "base": ("底座", "base"),
    "alias": ("别名", "alias"),
    "digest": ("摘要", "digest"),
    "tokens": ("{n} tokens", "{n} tokens"),
    "speed": ("{rate:.1f} tokens/s", "{rate:.1f} tokens/s"),
    "first": ("首字 {ms:.0f} ms", "first token {ms:.0f} ms"),
    "seed": ("种子 {seed}", "seed {seed}"),
    "waiting": ("等待中…", "waiting…"),
    "length": ("已达长度上限", "length limit reached"),
    "abort": ("已停止", "stopped"),
    "thought": ("思考过程", "Thoughts"),
    "greeting": ("与 {name} 聊聊", "Chat with {name}"),
    "nothing": ("先说点什么吧", "say something first"),
    "login": ("访问密钥", "Access key"),
    "enter": ("进入", "Enter"),
    "wrong_key": ("密钥不对，或已停用", "This key is wrong, or no longer valid"),
}

QUESTIONS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("你是谁？", "今天过得怎么样？", "给我讲个故事吧。"),
    ("Who are you?", "How was your day?", "Tell me a story."),
)


def translations() -> gr.I18n:
    """Both languages of LABELS for the browser."""
    return gr.I18n(
        **{
            "zh-CN": {key: zh for key, (zh, _) in LABELS.items()},
            "en": {key: en for key, (_, en) in LABELS.items()},
        }
    )


def t(key: str) -> object:
    """A label that the browser shows in its language. KeyError for one that LABELS lacks."""
    LABELS[key]
    return gr.i18n.I18nData(key)


def language_of(request: gr.Request) -> Language:
    """`?lang=` of the page, else the browser's first language; anything but Chinese reads English."""
    wanted = request.query_params.get("lang") or request.headers.get("accept-language", "")
    return "zh" if wanted.strip().lower().startswith("zh") else "en"


def say(language: Language, key: str, **values: object) -> str:
    zh, en = LINES[key]
    return (zh if language == "zh" else en).format(**values)


def questions(language: Language) -> list[str]:
    """Openers for a model that brings none of its own."""
    return list(QUESTIONS[0] if language == "zh" else QUESTIONS[1])
