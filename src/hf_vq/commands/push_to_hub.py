"""Publishes a tokenizer, a classifier or a pipeline on the Hub, with its model card.

    hf-vq push quickstart/pipeline user/xray-to-ct --dry_run
    hf-vq push quickstart/pipeline user/xray-to-ct --private --metrics quickstart/metrics.json
    hf-vq push volume-tokenizer user/ct-tokenizer --revision v2 --commit_message "Trained for longer"

The folder is what a training or `save_pretrained` wrote. Of what it holds go configs, safetensors weights, processors,
scheduler, the record of the training, the card and what the card shows; checkpoints, logs and all else stay behind. It
is loaded first, and refused if others could not load it. The card is made of what the folder tells; a README.md that
somebody wrote or changed goes as it is. `--dry_run` only says what would go, and shows the card. Log
in with `hf auth login` or set HF_TOKEN.
"""

import argparse
from collections.abc import Sequence


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a tokenizer, a classifier or a pipeline")
    parser.add_argument("repo_id", help="owner/name of the repository, which is made where it is missing")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--revision", help="branch to publish on, made where it is missing; main by default")
    parser.add_argument("--commit_message", help="'Upload' and the class by default")
    parser.add_argument("--metrics", help="metrics.json of an evaluation, to make the card from")
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0 or other, for the card")
    parser.add_argument("--dry_run", action="store_true", help="upload nothing, say what would be uploaded")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, load, show, upload."""
    args = parse_args(arguments)

    from ..hub.publishing import describe, prepare, upload

    bundle = prepare(args.folder, args.repo_id, args.metrics, args.license)
    print(describe(bundle))
    if args.dry_run:
        print(f"\nnothing was uploaded to {args.repo_id}")
        return
    commit = upload(bundle, args.repo_id, args.private or None, args.revision, args.commit_message)
    print(f"\npublished: {commit.commit_url}")
