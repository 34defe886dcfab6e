"""Serves a web page on which X-rays are uploaded, CT volumes generated and both looked at (extra `app`).

    hf-vq app --pipeline quickstart/pipeline
    hf-vq app --pipeline user/repo --examples cohort --port 7861

Prints the address, and ends with Ctrl-C. Without `--examples` the subjects of the folder `cohort` beside the pipeline's
can be chosen, if there is one.
"""

import argparse
from collections.abc import Sequence

from ..app import server


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    return server.parse_args(arguments, __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until interrupted."""
    server.main(arguments, __doc__)
