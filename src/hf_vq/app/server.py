"""Serving the page: flags, environment variables, limits."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.paired import PairedDataset
from ..pipelines import open_pipeline
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline
from .workspace import Workspace

DEFAULT_PIPELINE = "quickstart/pipeline"
PIPELINE_VARIABLE, EXAMPLES_VARIABLE = "HF_VQ_PIPELINE", "HF_VQ_EXAMPLES"
_SESSIONS = 64


def parse_args(arguments: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """Flags of the page; the environment gives their defaults, as a Space has no command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pipeline",
        default=os.environ.get(PIPELINE_VARIABLE) or DEFAULT_PIPELINE,
        help=f"folder or Hub id of a ViewsToVolumePipeline (${PIPELINE_VARIABLE}, or {DEFAULT_PIPELINE})",
    )
    parser.add_argument(
        "--examples",
        default=os.environ.get(EXAMPLES_VARIABLE) or None,
        help=f"paired folder or data set id to choose patients from (${EXAMPLES_VARIABLE}); by default the folder "
        "`cohort` beside the pipeline's, if there is one",
    )
    parser.add_argument("--split", default="test", help="split of the examples")
    parser.add_argument("--host", help="address to listen at; this machine alone by default ($GRADIO_SERVER_NAME)")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on by default ($GRADIO_SERVER_PORT)")
    parser.add_argument("--max_upload_mb", type=int, default=100, help="largest file that can be uploaded, megabytes")
    parser.add_argument("--max_queue", type=int, default=16, help="calls that may wait")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError for a request that cannot be met, before anything is loaded."""
    for name in ("max_upload_mb", "max_queue"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least 1; give a larger number")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ValueError(f"--port: found {args.port}, expected 1 to 65535; choose another")


def load_pipeline(source: str) -> ViewsToVolumePipeline:
    """The pipeline, on a GPU when there is one, without its own progress bar."""
    pipeline: ViewsToVolumePipeline = open_pipeline(source, ViewsToVolumePipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def shown_name(source: str) -> str:
    """What the page calls a pipeline: its name on the Hub, or the end of its path."""
    return "/".join(Path(source).absolute().parts[-2:]) if Path(source).is_dir() else source


def open_examples(args: argparse.Namespace, view_names: Sequence[str]) -> PairedDataset | None:
    """The subjects to choose from, with the views that the model takes, if there are any.

    Raises:
        ValueError: the folder or data set asked for is missing or lacks views.
    """
    source = args.examples
    if source is None:
        beside = Path(args.pipeline).parent / "cohort"
        if not (beside / args.split).is_dir():
            return None
        source = str(beside)
    return PairedDataset(source, args.split, views=list(view_names))


def prepare_environment(workspace: Workspace) -> None:
    """Tells gradio, before it is imported, to call nobody and to keep its files in the workspace."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        GRADIO_TEMP_DIR=str(workspace.path / "uploads"),
    )


def import_page() -> Any:
    """The module that builds the page; raises ImportError with the command that installs gradio."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError("the page needs gradio, which could not be imported: pip install hf-vq[app]") from error
    from . import page

    return page


def _end(*_: object) -> None:
    """Ends the page as Ctrl-C does, so that its files go when a service manager ends it; a second signal is ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def main(arguments: Sequence[str] | None = None, description: str | None = None) -> None:
    """Parse, load, serve until interrupted."""
    args = parse_args(arguments, description)
    check_args(args)
    signal.signal(signal.SIGTERM, _end)
    workspace = Workspace()
    try:
        prepare_environment(workspace)
        page_module = import_page()
        pipeline = load_pipeline(args.pipeline)
        examples = open_examples(args, pipeline.transformer.view_names)
        page = page_module.build_page(pipeline, workspace, shown_name(args.pipeline), examples)
        page.queue(max_size=args.max_queue)
        page.launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=f"{args.max_upload_mb}mb",
            state_session_capacity=_SESSIONS,
            share=False,
            ssr_mode=False,
            show_error=False,
            footer_links=[],
            run_history=False,
            theme=page_module.theme(),
            css=page_module.css(),
        )
    finally:
        workspace.close()
