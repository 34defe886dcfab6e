"""Uploads a prepared cohort, or codes, to the Hub as a data set that `load_dataset` reads and streams.

    hf-vq push-dataset cohort user/cohort --private --dry_run
    hf-vq push-dataset cohort user/cohort --private
    hf-vq push-dataset codes user/codes --revision v2

The folder is what prepare_cohort.py, prepare_scans.py or encode_codes.py wrote. Volumes and views are embedded as the
files they are; names of subjects and all columns of metadata.csv go along, the reports of a preparation do not.
`--dry_run` shows the files and the card and uploads nothing. Afterwards `--data user/cohort` names the data to every
script, `--data user/cohort@v2` a branch, a tag or a commit of it.

The files are written to the folder for temporary files first (TMPDIR), where they take as much room again.
"""

import argparse
import tempfile
from collections.abc import Sequence


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a cohort or of codes")
    parser.add_argument("repo_id", help="owner/name of the data set, which is made where it is missing")
    parser.add_argument("--private", action="store_true", help="make the new data set private")
    parser.add_argument("--revision", help="branch to publish on, made where it is missing; main by default")
    parser.add_argument("--commit_message", help="'Upload data set' by default")
    parser.add_argument("--source", help="where the scans or images come from, in words, for the card")
    parser.add_argument("--license", help="licence of the data, such as cc-by-3.0, for the card")
    parser.add_argument("--shard_size", type=int, default=256, help="MiB of a Parquet file, about")
    parser.add_argument("--dry_run", action="store_true", help="upload nothing, say what would be uploaded")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write, show, upload."""
    args = parse_args(arguments)
    if args.shard_size < 1:
        raise ValueError(f"--shard_size: found {args.shard_size}, expected at least 1 MiB; raise it")

    from ..data.publishing import describe, upload, write_publication

    given = {"source": args.source, "license": args.license}
    stated = {name: text for name, text in given.items() if text}
    with tempfile.TemporaryDirectory(prefix="hf_vq_") as temporary:
        publication = write_publication(args.folder, temporary, args.repo_id, stated, args.shard_size * 2**20)
        print(describe(publication), flush=True)
        if args.dry_run:
            print(f"\nnothing was uploaded to {args.repo_id}")
            return
        commit = upload(publication, args.repo_id, args.private or None, args.revision, args.commit_message)
    print(f"\npublished: {commit.commit_url}")
