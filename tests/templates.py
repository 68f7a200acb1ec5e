"""Chat templates in the published forms of tool calls and thoughts, in our own words and as short as they can be."""

_HEAD = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"

_OFFER = (
    "{%- if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif -%}"
)


def _chat(call: str, *, offer: str = _OFFER, head: str = _HEAD, reply: str = "message.content") -> str:
    """ChatML around `call`, which writes `call.name` and `call.arguments`."""
    return (
        offer + "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.role == 'assistant' %}{{ " + reply + " }}{% else %}{{ message.content }}{% endif -%}"
        "{%- for wrapped in message.tool_calls or [] %}{% set call = wrapped.function %}" + call + "{% endfor -%}"
        "{{ '<|im_end|>\n' }}"
        "{%- endfor -%}" + head
    )


HERMES = _chat(
    "{{ '<tool_call>\n' + {'name': call.name, 'arguments': call.arguments} | tojson + '\n</tool_call>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
)
QWEN_CODER = _chat(
    "{{ '<tool_call>\n<function=' + call.name + '>\n' }}"
    "{% for key, value in call.arguments.items() %}"
    "{{ '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}"
    "{% endfor %}{{ '</function>\n</tool_call>' }}"
)
GLM = _chat(
    "{{ '<tool_call>' + call.name + '\n' }}"
    "{% for key, value in call.arguments.items() %}"
    "{{ '<arg_key>' + key + '</arg_key>\n<arg_value>' + (value if value is string else value | tojson) }}"
    "{{ '</arg_value>\n' }}{% endfor %}{{ '</tool_call>' }}"
)
LLAMA = _chat("{{ {'name': call.name, 'parameters': call.arguments} | tojson }}")
MISTRAL = _chat(
    "{% if loop.first %}{{ '[TOOL_CALLS] [' }}{% endif %}"
    "{% if wrapped.id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{% endif %}"
    "{{ {'name': call.name, 'arguments': call.arguments, 'id': wrapped.id} | tojson }}"
    "{{ ']' if loop.last else ', ' }}"
)
MISTRAL_NAMED = _chat("{{ '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments | tojson }}")
UNKNOWN = _chat("{{ '((' + call.name + '/' + call.arguments | tojson + '))' }}")

TOOLS = {
    "hermes": HERMES,
    "qwen_coder": QWEN_CODER,
    "glm": GLM,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral_named": MISTRAL_NAMED,
}

# Thinking that can be turned off, by an empty thought in the prompt; thoughts of earlier turns are left out.
_FORGET = "message.content.split('</think>')[-1]"
SWITCHED = _chat(
    "{{ '<tool_call>\n' + {'name': call.name, 'arguments': call.arguments} | tojson + '\n</tool_call>' }}",
    head=_HEAD.replace("\n' }}", "\n' + ('' if enable_thinking else '<think>\n\n</think>\n\n') }}"),
    reply=_FORGET,
)
# Thinking that the prompt begins, always.
BEGUN = _chat("", offer="", head=_HEAD.replace("\n' }}", "\n<think>\n' }}"), reply=_FORGET)
