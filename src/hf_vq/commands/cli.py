"""The command `hf-vq`: its first word says what to do, and all that follows belongs to that.

Nothing of a command is imported before it is called.
"""

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__

# What each command does, and the module whose `main` does it.
COMMANDS = {
    "generate": ("CT volumes from X-ray views, for one subject or a data set", "hf_vq.commands.generate"),
    "generate-images": ("images from a CodeGenerationPipeline", "hf_vq.commands.generate_images"),
    "reconstruct": ("a scan or an image through a tokenizer and back", "hf_vq.commands.reconstruct"),
    "evaluate": ("scores of generated volumes against the true ones", "hf_vq.commands.evaluate"),
    "info": ("what a folder or repository holds, without loading weights", "hf_vq.commands.info"),
    "push": ("a tokenizer, classifier or pipeline to the Hub", "hf_vq.commands.push_to_hub"),
    "push-dataset": ("a prepared cohort or codes to the Hub", "hf_vq.commands.push_dataset"),
    "app": ("a web page for a pipeline", "hf_vq.commands.app"),
}

EXAMPLES = """\
examples:
  hf-vq info user/repo
  hf-vq generate --pipeline user/repo --views frontal=frontal.png lateral=lateral.png --output ct.nii.gz
  hf-vq reconstruct --tokenizer user/repo --input scan.nii.gz --output reconstruction.nii.gz
  hf-vq evaluate --data cohort --generated generated --output_dir evaluation
  hf-vq push pipeline user/repo --dry_run
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the first word."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, (purpose, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hf-vq",
        usage="hf-vq [-h] [--version] COMMAND ...",
        description="Vector-quantised networks for Hugging Face: tokenizers, and X-ray to CT pipelines.",
        epilog=f"commands:\n{listed}\n\n{EXAMPLES}\n`hf-vq COMMAND --help` says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("--version", action="version", version=f"hf-vq {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; bad input ends it with one line on stderr and exit status 2."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    if not argv:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    name = parser.parse_args(argv[:1]).command

    from ..training.arguments import run

    with _called_as(f"hf-vq {name}"):
        run(lambda: importlib.import_module(COMMANDS[name][1]).main(argv[1:]))


@contextmanager
def _called_as(program: str) -> Iterator[None]:
    """Usage and error lines bear this name."""
    before = sys.argv
    sys.argv = [program, *before[1:]]
    try:
        yield
    finally:
        sys.argv = before
