"""How the page's events run and what a session holds; nothing is served here."""

import pytest

gradio = pytest.importorskip("gradio", reason="needs the extra `app`")

from hf_vq.app.generation_tab import GenerationTab  # noqa: E402
from hf_vq.app.workspace import Workspace  # noqa: E402


@pytest.fixture
def page(build_pipeline):
    """The tab, and the page that it is on."""
    workspace = Workspace()
    with gradio.Blocks() as blocks:
        tab = GenerationTab(build_pipeline(), workspace)
    yield tab, blocks
    workspace.close()


def test_a_session_holds_the_paths_of_its_xrays(page, views):
    tab, _ = page
    held, shown, _ = tab._uploader("frontal")(str(views["frontal"]), {"lateral": "other.png"})
    assert held == {"frontal": str(views["frontal"]), "lateral": "other.png"}
    assert shown.shape == (256, 256, 3)


def test_what_changes_the_xrays_of_a_session_runs_one_after_another(page):
    tab, blocks = page
    events = [event for event in blocks.fns.values() if tab.views in event.outputs]
    assert len(events) == len(tab.uploads) + 2
    for event in events:
        assert (event.queue, event.concurrency_limit, event.concurrency_id) == (True, 1, "upload")
