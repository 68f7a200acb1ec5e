"""How the page looks: fonts of the system, colours with enough contrast in light and dark, and the few lines of
CSS that Gradio's own widgets need to be readable on a projector. What one tab alone needs is in its own package."""

import gradio as gr

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]

# The vermilion of the opera's face paint.
_VERMILION = gr.themes.Color(
    name="vermilion",
    c50="#fdf3f1",
    c100="#fbe3de",
    c200="#f6c6bd",
    c300="#ee9f91",
    c400="#e37261",
    c500="#d24b38",
    c600="#bb3726",
    c700="#9d2b1d",
    c800="#7f2318",
    c900="#5f1b13",
    c950="#3d110c",
)


def theme() -> gr.themes.Base:
    # Gradio's own primary button and subdued text fall short of 4.5:1.
    return gr.themes.Default(
        primary_hue=_VERMILION,
        secondary_hue=_VERMILION,
        neutral_hue=gr.themes.colors.stone,
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
        layout_gap="10px",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


CSS = """
body { background: var(--body-background-fill) !important; color: var(--body-text-color); }
.gradio-container { width: 100% !important; max-width: 1440px !important; margin: 0 auto !important; }
.gradio-container .main.app { padding: 12px min(24px, 2vw) !important; }
.gradio-container main { padding: 0 !important; }
#head { padding: 4px; }
#head .headline { display: flex; align-items: baseline; flex-wrap: wrap; gap: 2px 14px; }
#head h1 { font-size: 1.7rem; font-weight: 700; margin: 0; letter-spacing: .02em; white-space: nowrap; }
#head h1 .face { color: var(--primary-700); }
.dark #head h1 .face { color: var(--primary-400); }
#head p { margin: 0; color: var(--body-text-color-subdued); }
.lane { border-top: 4px solid var(--lane); border-radius: 6px; padding-top: 6px; }
.lane-0 { --lane: #64748b; } .lane-1 { --lane: #bb3726; } .lane-2 { --lane: #0f766e; } .lane-3 { --lane: #6d28d9; }
.stats { font-size: .9rem; line-height: 1.5; min-height: 1.5em; color: var(--body-text-color-subdued);
         font-variant-numeric: tabular-nums; padding: 0 4px; overflow-wrap: anywhere; }
.stats b { color: var(--body-text-color); }
.stats .figure { white-space: nowrap; }
.stats code { font-family: var(--font-mono); font-size: .85em; padding: 1px 5px; border-radius: 4px;
              color: var(--body-text-color); background: var(--background-fill-secondary);
              border: 1px solid var(--border-color-primary); }
.stats.running::after { content: "●"; margin-left: 6px; color: var(--primary-500); animation: breathe 1s infinite; }
.trouble { color: #b91c1c; padding: 2px 4px; overflow-wrap: anywhere; } .dark .trouble { color: #fca5a5; }
@keyframes breathe { 50% { opacity: .15; } }
@media (prefers-reduced-motion: reduce) { .stats.running::after { animation: none; } }
[id$="-stats"] .html-container, #head .html-container { padding: 0 !important; }
[id$="-model"] input { line-height: 1.5 !important; text-overflow: ellipsis; padding-top: 2px; padding-bottom: 2px; }
#dice { align-self: center; }
.prose.chatbot { opacity: 1 !important; }
.token { color: inherit !important; }
"""
