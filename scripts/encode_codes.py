"""Encodes a data set once with trained tokenizers and stores the codes as a `datasets` data set.

    python scripts/encode_codes.py --data cohort --volume_tokenizer volume-tokenizer --view_tokenizer view-tokenizer \\
        --output_dir codes
    python scripts/encode_codes.py --data /usr/share/datasets/fashion-mnist --tokenizer tokenizer --output_dir codes
    accelerate launch scripts/encode_codes.py --data cohort --volume_tokenizer volume-tokenizer \\
        --view_tokenizer view-tokenizer --output_dir codes --shard_size 256 --dataloader_num_workers 4

The result has the splits train, validation and, where the data have one, test. Of paired data it holds for each subject
the columns `subject`, `codes` (the volume's grid), one per view (that view's grid) and, where the data name classes,
`label`; of images the columns `codes` and, if all splits have labels, `label`. Codes are int32. With `--num_shifts` the
training split also holds copies of each pair, the volume moved by whole voxels and its views as parallel rays would
show it then.

A run that was stopped, even killed, goes on behind its last finished shard when the same command is run again, and the
result is the same to the byte. Until it is finished, it lies in the hidden folder `.NAME.unfinished` beside
`--output_dir`, and an earlier result stays; data, tokenizers and flags must be those it began with. Several processes
(`accelerate launch`) share the shards.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState

from hf_vq import __version__
from hf_vq.data import describe_data
from hf_vq.data.checking import ON_ERROR
from hf_vq.data.description import ENCODING_FILE
from hf_vq.data.paired_shifts import draw_shifts
from hf_vq.data.sharding import MARKER, SHARD_SIZE, SKIPPED_FILE, ShardedOutput, list_skipped
from hf_vq.files import check_replaceable
from hf_vq.training.arguments import run
from hf_vq.training.encoding import Encoder, ImageEncoder, PairedEncoder, encode, files_digest

TOKENIZER_FLAGS = ("tokenizer", "volume_tokenizer", "view_tokenizer")
LONGEST_WAIT = timedelta(days=1)  # of a process that is done, for the last one


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="paired or image folder, or data set id")
    parser.add_argument("--volume_tokenizer", help="paired data: folder or Hub id of 3D tokenizer and processor")
    parser.add_argument("--view_tokenizer", help="paired data: folder or Hub id of 2D tokenizer and processor")
    parser.add_argument("--tokenizer", help="images: folder or Hub id of 2D tokenizer and processor")
    parser.add_argument("--image_column", help="images: their column, where there are several")
    parser.add_argument("--label_column", help="images: the column of labels, where it is not plain")
    parser.add_argument("--label_names", nargs="+", help="images: name of each label, where the data have none")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--shard_size", type=int, default=SHARD_SIZE, help="rows of a file; what a kill can cost")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load data, each")
    parser.add_argument("--num_shifts", type=int, default=0, help="paired data: moved copies of each training pair")
    parser.add_argument("--max_shift", type=int, default=1, help="voxels along each axis by which copies are moved")
    parser.add_argument("--seed", type=int, default=0, help="of the shifts")
    parser.add_argument("--on_error", choices=ON_ERROR, default="stop", help="what to do with files that are bad")
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    return parser.parse_args(arguments)


def check_args(args: argparse.Namespace) -> None:
    """Raises ValueError unless the flags name the tokenizers of one kind of data, and other values make sense."""
    paired = [name for name in ("volume_tokenizer", "view_tokenizer") if getattr(args, name)]
    if bool(args.tokenizer) == bool(paired) or len(paired) == 1:
        given = [f"--{name}" for name in (*paired, *(["tokenizer"] if args.tokenizer else []))]
        raise ValueError(
            "expected --tokenizer for images, or --volume_tokenizer and --view_tokenizer for paired data; found "
            f"{given or 'none of them'}"
        )
    draw_shifts(args.num_shifts, args.max_shift, torch.Generator())  # too many are better found now
    for name, least in (("batch_size", 1), ("shard_size", 1), ("dataloader_num_workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name}: found {getattr(args, name)}, expected at least {least}")


def make_encoder(args: argparse.Namespace, device: torch.device) -> Encoder:
    """The encoder of the kind of data that the flags name."""
    if args.tokenizer:
        options = {name: getattr(args, name) for name in ("image_column", "label_column", "label_names")}
        return ImageEncoder(args.data, args.tokenizer, device, **options)
    shifts = (args.num_shifts, args.max_shift, args.seed)
    return PairedEncoder(args.data, args.volume_tokenizer, args.view_tokenizer, device, *shifts, args.on_error)


def settings_of(args: argparse.Namespace, encoder: Encoder) -> dict[str, Any]:
    """Everything the codes depend on: an unfinished run goes on only where all of it is the same."""
    return {
        "data": files_digest(args.data, args.output_dir),
        **encoder.settings,
        "batch_size": args.batch_size,
        "versions": [__version__, torch.__version__, datasets.__version__],
    }


def encoding_record(args: argparse.Namespace, output: ShardedOutput) -> dict[str, Any]:
    """Of which data the codes are, how many, and by which tokenizers, folders without the path to them: what is known
    of the data goes on to what is trained on the codes."""
    shifts = {"num_shifts": args.num_shifts, "max_shift": args.max_shift if args.num_shifts else 0, "seed": args.seed}
    given = {name: getattr(args, name) for name in TOKENIZER_FLAGS if getattr(args, name)}
    tokenizers = {name: Path(text).resolve().name if Path(text).is_dir() else text for name, text in given.items()}
    skipped = len({(entry.split, entry.subject) for entry in output.skipped()})
    return {
        "data": describe_data(args.data),
        "rows": output.rows(),
        "tokenizers": tokenizers,
        **({"skipped": skipped} if skipped else {}),
        **({} if args.tokenizer else shifts),
    }


def finish(args: argparse.Namespace, output: ShardedOutput) -> None:
    """Puts the shards together, with the record and the list of what was left out."""
    texts = {ENCODING_FILE: json.dumps(encoding_record(args, output), indent=2) + "\n"}
    if output.skipped():
        texts[SKIPPED_FILE] = list_skipped(output.skipped())
    output.finish(texts)


def main() -> None:
    """Parse, load, encode shard by shard, put together."""
    args = parse_args()
    check_args(args)
    check_replaceable(args.output_dir, args.overwrite, MARKER)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    encoder = make_encoder(args, state.device)
    sizes = {split: len(items) for split, items in encoder.items.items()}  # type: ignore[arg-type]
    output = ShardedOutput(args.output_dir, settings_of(args, encoder), sizes, args.shard_size)
    with ExitStack() as stack:
        if state.is_main_process:
            stack.enter_context(output.writing(args.overwrite))
        state.wait_for_everyone()
        share = (state.process_index, state.num_processes)
        encode(encoder, output, *share, args.batch_size, args.dataloader_num_workers, args.on_error == "skip")
        state.wait_for_everyone()
        if state.is_main_process:
            finish(args, output)
    state.wait_for_everyone()


if __name__ == "__main__":
    run(main)
