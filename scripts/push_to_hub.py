"""Publishes a tokenizer, a classifier or a pipeline on the Hub, with its model card.

    python scripts/push_to_hub.py quickstart/pipeline user/xray-to-ct --dry_run
    python scripts/push_to_hub.py quickstart/pipeline user/xray-to-ct --private --metrics quickstart/metrics.json

The same as `hf-vq push`, whose flags `--help` describes.
"""

from hf_vq.commands.push_to_hub import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
