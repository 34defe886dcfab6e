"""What the tabs share: how events run, what a picture and a message look like, and refusals in words."""

import html
from typing import Any

import gradio as gr

QUICK_EVENT: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
"""Drawing: at once, and while a slider moves only its latest place."""

UPLOAD_EVENT: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "upload",
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""Whatever changes the X-rays of a session: one at a time, so that none is lost and few are in memory at once."""

MODEL_EVENT: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
"""Whatever runs a network: one call at a time, the others wait in the queue."""

KEPT_SECONDS = 3600
"""How long results of a session and files are kept."""

CSS = """
.message {color: var(--error-text-color, #b91c1c); font-weight: 600; margin: 0}
.notice {border-left: 4px solid #d97706; padding: 0.4em 0.8em; margin: 0.2em 0}
.notice p {margin: 0}
#turntable img {width: 100%; height: 300px; object-fit: contain; background: black}
"""


def picture(label: str, elem_id: str, show_label: bool = True) -> Any:
    """A component that shows pictures exactly as they are made."""
    return gr.Image(
        label=label,
        show_label=show_label,
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        elem_id=elem_id,
    )


def message(elem_id: str) -> Any:
    """A component for what `as_message` returns; it takes no room before."""
    return gr.HTML("", elem_id=elem_id, visible=False)


def as_message(text: object) -> Any:
    """A line of text that stands out, hidden where it is empty; nothing in it is taken for HTML."""
    words = str(text)
    return gr.HTML(f'<p class="message">{html.escape(words)}</p>', visible=bool(words))


def refuse(error: ValueError) -> None:
    """Shows the words of an error in a corner of the page until they are clicked away."""
    gr.Warning(html.escape(str(error)), duration=None, title="Not possible")
