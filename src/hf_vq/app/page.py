"""The page: what it is, what it is not, and its two tabs."""

import html

import gradio as gr

from ..data.paired import PairedDataset
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline
from .generation_tab import GenerationTab
from .parts import CSS, KEPT_SECONDS
from .reconstruction_tab import ReconstructionTab
from .workspace import Workspace

TITLE = "CT from X-rays"
NOT_A_DEVICE = (
    "Not a medical device. What this page shows is made up by a model from the X-rays and must not be used to judge, "
    "diagnose or treat anybody."
)
RENDERED_ONLY = "This model has been trained on X-rays rendered from CT scans only, not on real ones."
PRIVACY = "Upload nothing that names a patient. Files and results are deleted from this server after about an hour."
SIDES = "In pictures R and L, A and P, S and I mark the patient's right and left, front and back, head and feet."

_SWEEP_SECONDS = 600


def build_page(
    pipeline: ViewsToVolumePipeline, workspace: Workspace, name: str, examples: PairedDataset | None = None
) -> gr.Blocks:
    """The page for a loaded pipeline, not yet served.

    Args:
        pipeline: draws the volumes; its volume tokenizer is that of the second tab.
        workspace: where the page's files lie.
        name: what the page calls the pipeline.
        examples: subjects with the pipeline's views to choose from; None for none.
    """
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(_SWEEP_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.HTML(_introduction(name, pipeline.view_processor.views_rendered))
        with gr.Tabs():
            with gr.Tab("X-rays to CT"):
                GenerationTab(pipeline, workspace, examples)
            with gr.Tab("Scan through the tokenizer", elem_id="tokenizer-tab"):
                ReconstructionTab(pipeline, examples)
    return page


def theme() -> gr.themes.Base:
    """A look that loads no fonts from elsewhere."""
    return gr.themes.Soft(
        primary_hue="sky",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def css() -> str:
    """Styles of the page's own classes."""
    return CSS


def _introduction(name: str, views_rendered: bool) -> str:
    notice = f"<b>{NOT_A_DEVICE}</b> {RENDERED_ONLY if views_rendered else ''}"
    return (
        f"<h1>{TITLE}</h1><p>Volumes drawn by <code>{html.escape(name)}</code>. {SIDES} {PRIVACY}</p>"
        f'<div class="notice" id="notice"><p>{notice}</p></div>'
    )
