"""The words that several tabs use, in Chinese and English; those of one tab are in its own file."""

from adapters.ui.words import Both, Language, Words

LABELS: dict[str, Both] = {
    "subtitle": (
        "一个底座，百变面孔：同一个模型，随时换上不同的 LoRA",
        "One base model, many faces: LoRA adapters, swapped live",
    ),
    "model": ("模型", "Model"),
    "strength": ("强度", "Strength"),
    "system": ("系统提示词", "System prompt"),
    "system_default": ("留空：使用该模型自带的提示词", "Empty: the model's own prompt"),
    "question": ("问题", "Question"),
    "question_hint": ("说点什么…（回车发送）", "Say something… (Enter sends)"),
    "compare_hint": ("同一个问题，各栏同时作答（回车发送）", "One question, every lane answers at once (Enter sends)"),
    "examples": ("试试这些问题", "Try one of these"),
    "send_button": ("发送", "Send"),
    "stop_button": ("停止", "Stop"),
    "clear_button": ("清空", "Clear"),
    "sampling": ("采样设置", "Sampling"),
    "temperature": ("温度", "Temperature"),
    "top_p": ("Top-p", "Top-p"),
    "top_k": ("Top-k（0 为不限）", "Top-k (0: all)"),
    "max_tokens": ("最多生成 token 数", "Max new tokens"),
    "seed": ("随机种子", "Seed"),
    "seed_chat_info": ("留空：每次不同", "Empty: new each time"),
}

LINES: dict[str, Both] = {
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
    "interrupted": ("服务器中途停止，答案不完整", "the server stopped halfway through this answer"),
    "thought": ("思考过程", "Thoughts"),
    "nothing": ("先说点什么吧", "say something first"),
    "login": ("访问密钥", "Access key"),
    "login_subtitle": ("一个底座，百变面孔", "One base model, many faces"),
    "login_hint": (
        "密钥由管理员发放：bianlian keys create 名称",
        "Keys are given out by the administrator: bianlian keys create NAME",
    ),
    "enter": ("进入", "Enter"),
    "wrong_key": ("密钥不对，或已停用", "This key is wrong, or no longer valid"),
    "slow_down": ("试错太多次，请 {seconds} 秒后再试", "Too many wrong keys; try again in {seconds} seconds"),
    "ended": ("登录已失效，请重新进入", "Your session has ended; log in again"),
}

QUESTIONS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("你是谁？", "今天过得怎么样？", "给我讲个故事吧。"),
    ("Who are you?", "How was your day?", "Tell me a story."),
)


WORDS = Words("common", LABELS, LINES)
t, say = WORDS.t, WORDS.say


def questions(language: Language) -> list[str]:
    """Openers for a model that brings none of its own."""
    return list(QUESTIONS[0] if language == "zh" else QUESTIONS[1])
