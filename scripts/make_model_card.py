"""Writes the model card of a trained tokenizer, classifier or pipeline.

    python scripts/make_model_card.py --model pipeline --metrics metrics.json --repo_id user/name --license apache-2.0
    python scripts/make_model_card.py --model pipeline volume-tokenizer view-tokenizer --metrics metrics.json

The card is README.md in the folder of the model, made of its configs, of `training.json`, which the training left
there, and of the metrics file that evaluate.py, evaluate_images.py or train_classifier.py wrote. What none of these
records is said not to be recorded. Pictures of the evaluation (`sheet.png`, `codebook.png`) are taken from the folder
of the metrics file, and `results.json`, the metrics without subjects and paths, is written beside the card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_vq.hub.cards import write_card
from hf_vq.training.arguments import run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, nargs="+", type=Path, help="folder(s) that save_pretrained wrote")
    parser.add_argument("--metrics", type=Path, help="metrics.json; by default the one in --model, if there is one")
    parser.add_argument("--repo_id", help="id on the Hub, for the example of the card; by default the folder's name")
    parser.add_argument(
        "--license", help="of the weights, as the Hub names licences; by default as the card there says"
    )
    parser.add_argument("--output_dir", type=Path, help="folder for card and pictures; by default that of the model")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write each card."""
    args = parse_args(arguments)
    for name in ("repo_id", "output_dir"):
        if getattr(args, name) and len(args.model) > 1:
            raise ValueError(f"--{name}: found it with {len(args.model)} models, expected one; run once for each")
    for folder in args.model:
        options = {"metrics": args.metrics, "repo_id": args.repo_id, "license": args.license}
        print(write_card(folder, **options, output_dir=args.output_dir))


if __name__ == "__main__":
    run(main)
