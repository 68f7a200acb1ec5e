"""The row a question is typed in, the same in every tab."""

from typing import Literal

import gradio as gr

from serving.ui.texts import t


def question_row(tab: Literal["chat", "compare"], hint: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """Box, Send, and Stop (hidden while nothing runs), with ids `TAB-question`, `TAB-send`, `TAB-stop`. Call inside a
    gr.Row; what else belongs there follows."""
    question = gr.Textbox(
        show_label=False,
        container=False,
        placeholder=t(hint),
        lines=1,
        max_lines=6,
        scale=8,
        min_width=200,
        label=t("question"),
        autofocus=True,
        elem_id=f"{tab}-question",
    )
    send = gr.Button(t("send_button"), variant="primary", scale=1, min_width=90, elem_id=f"{tab}-send")
    stop = gr.Button(t("stop_button"), variant="stop", visible=False, scale=1, min_width=90, elem_id=f"{tab}-stop")
    return question, send, stop
