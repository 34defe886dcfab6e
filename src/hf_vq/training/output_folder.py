"""The folder that a training writes to: what it may hold, and its log, which a resumed training goes on with."""

import json
import shutil
from pathlib import Path

from ..files import atomic_file, clear_temporaries
from .arguments import TrainingArguments
from .checkpoints import LOG_FILE, clean_leftovers, list_checkpoints


def check_output_folder(args: TrainingArguments) -> None:
    """Refuses a folder that this training must not write to.

    Raises:
        ValueError: if the folder holds something and neither `resume_from_checkpoint` nor `overwrite` is given, or it
            is to be overwritten and no training wrote it.
    """
    output_dir = Path(args.output_dir)
    if args.resume_from_checkpoint or not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not args.overwrite:
        going_on = (
            " or --resume_from_checkpoint latest to go on"
            if list_checkpoints(output_dir)
            else ("; it holds no checkpoint to go on from")
        )
        raise ValueError(
            f"--output_dir {args.output_dir} is not empty; choose another one, or pass --overwrite true to start "
            f"again{going_on}"
        )
    if not (output_dir / LOG_FILE).is_file():
        raise ValueError(
            f"--output_dir {args.output_dir} holds no {LOG_FILE}, so no training wrote it and --overwrite leaves "
            "it alone; choose another one"
        )


def open_output_folder(args: TrainingArguments) -> None:
    """Makes the folder ready to be written to: emptied where it is to be overwritten, without half-written rests.

    Raises:
        ValueError: as `check_output_folder`, since it may have been filled meanwhile.
    """
    check_output_folder(args)
    output_dir = Path(args.output_dir)
    if args.overwrite and not args.resume_from_checkpoint and output_dir.is_dir():
        shutil.rmtree(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    clean_leftovers(output_dir)
    clear_temporaries(output_dir)


def cut_log(log: Path, num_rows: int, step: int) -> int:
    """Takes away the rows that a training wrote after the checkpoint that it goes on from, and will write again.

    Args:
        log: the file; where there is none, an empty one is made.
        num_rows: rows there were when the checkpoint was written.
        step: of the checkpoint; no row of a later one stays.

    Returns:
        Rows that are left.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    kept = [line for line in lines[:num_rows] if _is_row_until(step, line)]
    if kept != lines or not log.is_file():
        with atomic_file(log) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return len(kept)


def _is_row_until(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False
