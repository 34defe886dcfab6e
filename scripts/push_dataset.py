"""Uploads a prepared cohort, or codes, to the Hub as a data set that `load_dataset` reads and streams.

    python scripts/push_dataset.py cohort user/cohort --private --dry_run
    python scripts/push_dataset.py cohort user/cohort --private

The same as `hf-vq push-dataset`, whose flags and files `--help` describes.
"""

from hf_vq.commands.push_dataset import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
