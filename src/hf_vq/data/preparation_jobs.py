"""Preparing many scans, in this process or in several, so that a run that is killed can go on where it stopped."""

import errno
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import torch

from ..processors.fields import one_line
from ..processors.geometry import voxel_spacing
from .preparation import PreparationConfig, load_source, prepare_volume, write_prepared
from .prepared_folder import PreparedFolder, fingerprint_of
from .scan_search import ScanSource

OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What stops a preparation whatever it does about bad scans: nothing can be written any more."""


@dataclass(frozen=True)
class PreparationJob:
    """One scan to prepare.

    Attributes:
        source: the scan.
        split: split of its patient; empty where it has none.
        folder: where to write.
        config: how to prepare it.
        radiographs: image file of each view, where they are not rendered.
        left_out: why it is not wanted; empty where it is.
    """

    source: ScanSource
    split: str
    folder: PreparedFolder
    config: PreparationConfig
    radiographs: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""

    def row(self, status: str, reason: str = "", **fields: str) -> dict[str, str]:
        """Returns the row of the report."""
        split = self.split if status == "prepared" else ""
        subject = self.source.subject if status == "prepared" else ""
        return {
            "input": self.source.name,
            "kind": self.source.kind,
            "status": status,
            "reason": reason,
            "patient": self.source.patient,
            "subject": subject,
            "split": split,
            "files": str(len(self.source.files)),
            "shape": "",
            "spacing": "",
            **fields,
        }

    def fingerprint(self) -> str:
        """Returns a digest by which a change of the scan's files is noticed."""
        return fingerprint_of([*self.source.files, *self.radiographs.values()])


def run_job(job: PreparationJob, stop_on_error: bool = False) -> dict[str, str]:
    """Prepares one scan unless that has been done.

    Args:
        job: the scan and what to do with it.
        stop_on_error: raise what is wrong with a scan instead of reporting it.

    Returns:
        Its row of the report.

    Raises:
        ValueError: the scan cannot be used and `stop_on_error` is set.
        OSError: the disk is full.
        ImportError: a library is missing.
    """
    if job.left_out:
        return job.row("skipped", job.left_out)
    try:
        if job.source.problem:
            raise ValueError(job.source.problem)
        fingerprint = job.fingerprint()
        finished = job.folder.finished_row(job.source, fingerprint)
        if finished is not None:
            return finished
        job.folder.forget(job.source)
        row = _prepare(job)
        job.folder.record(job.source, fingerprint, row)
        return row
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OUTPUT_ERRORS:
            raise  # no fault of the scan
        reason = _reason(error, job.source)
        if stop_on_error:
            raise ValueError(f"{job.source.name}: {reason}") from error
        return job.row("skipped", reason)


def run_jobs(
    jobs: Sequence[PreparationJob], num_workers: int = 0, stop_on_error: bool = False
) -> Iterator[dict[str, str]]:
    """Prepares scans and yields their rows of the report, with several workers in the order in which they are done.

    Args:
        jobs: the scans.
        num_workers: processes to use beside this one; 0 works in this one.
        stop_on_error: as in `run_job`; scans that are being prepared when one fails are finished.

    Raises:
        ValueError: as `run_job`; a worker died.
        ImportError: a library is missing.
    """
    if num_workers == 0:
        yield from (run_job(job, stop_on_error) for job in jobs)
        return
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(threads,)) as pool:
        try:
            futures = [pool.submit(run_job, job, stop_on_error) for job in jobs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"--num_workers: found a worker that died of {num_workers}, expected all to live; memory may have run "
                "out: run the same command again with fewer workers, and it goes on where it stopped"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    """Shares the cores among the workers and lets this one end with its parent, even one that was killed."""
    torch.set_num_threads(threads)
    parent: Any = multiprocessing.parent_process()

    def follow_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _reason(error: Exception, source: ScanSource) -> str:
    """What is wrong with a scan, without the scan's name, so that the same fault reads the same in every row."""
    text = one_line(error)
    if source.series is not None:
        return text.removeprefix(f"{source.name}: ")
    (path,) = source.files
    return text.replace(str(path), path.name).removeprefix(f"{path.name}: ")


def _prepare(job: PreparationJob) -> dict[str, str]:
    """Prepares a scan, writes its files and returns its row of the report."""
    array, affine = load_source(job.source, job.config)
    prepared = prepare_volume(array, affine, job.config, job.radiographs)
    write_prepared(prepared, job.source.subject, job.folder.path / job.split)
    shape = " x ".join(str(n) for n in array.shape)
    spacing = " x ".join(f"{step:.4g}" for step in voxel_spacing(affine))
    return job.row("prepared", shape=shape, spacing=spacing)
