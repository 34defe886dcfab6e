"""Volumes made by any program: a folder of NIfTI files, what their numbers mean, and how they reach the true grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .metrics import Window
from .protocol import Scorer, Scores, Subject
from .report import ROW_SHUFFLED, ProgramSettings, row_of
from .sampling_record import read_sampling
from .volumes import Alignment, GridVolume, ValueRange, find_generated, onto_grid, read_volume, same_grid

_NARROW_RANGE_HU = 10.0


def split_name(text: str) -> tuple[str, str]:
    """Split `name=folder` into name and folder; the name is empty for a folder alone, also for one with a `=` in it."""
    name, mark, folder = text.partition("=")
    return (name.strip(), folder) if mark and not Path(text).exists() else ("", text)


def parse_value_range(text: str, window: Window) -> tuple[str, ValueRange]:
    """Read `[name=]low,high[,low_hu,high_hu]`; without HU the two ends stand for those of the window.

    Raises:
        ValueError: other than two or four numbers, or as `ValueRange`.
    """
    name, mark, numbers = text.rpartition("=")
    try:
        ends = [float(number) for number in numbers.split(",")]
    except ValueError:
        ends = []
    if len(ends) not in (2, 4):
        raise ValueError(
            f"--value_range: found {text!r}, expected [NAME=]LOW,HIGH or [NAME=]LOW,HIGH,LOW_HU,HIGH_HU, such as "
            "other=0,2500,-1000,1500"
        )
    return name.strip() if mark else "", ValueRange(*ends[:2], *(ends[2:] or window))


@dataclass(frozen=True)
class GeneratedVolumes:
    """Generated volumes of the subjects of one split.

    Attributes:
        folder: where they lie.
        files: for each subject its samples.
        values: what the numbers in the files mean; HU when absent.
        alignment: how a volume is laid on the true one's grid.
    """

    folder: Path
    files: Mapping[str, Sequence[Path]]
    values: ValueRange | None = None
    alignment: Alignment = Alignment.CENTRE
    _seen: dict[Path, tuple[bool, float, float]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def find(
        cls,
        folder: str | Path,
        subjects: Sequence[str],
        *,
        values: ValueRange | None = None,
        alignment: Alignment = Alignment.CENTRE,
        allow_missing: bool = False,
    ) -> "GeneratedVolumes":
        """Find the volumes of a folder; nothing is read yet.

        Args:
            folder: folder of generated volumes, see `find_generated`.
            subjects: names of the subjects to be evaluated.
            values: what the numbers in the files mean; HU when absent.
            alignment: how a volume is laid on the true one's grid.
            allow_missing: leave out subjects without a volume; without it they are an error.

        Raises:
            ValueError: as `find_generated`.
        """
        return cls(Path(folder), find_generated(folder, subjects, allow_missing), values, alignment)

    @property
    def num_samples(self) -> int:
        """Volumes of each subject."""
        return len(next(iter(self.files.values())))

    def sample(self, subject: Subject, index: int) -> npt.NDArray[np.float32]:
        """Read one sample of a subject onto the grid of its true volume, in HU, shape (D, H, W)."""
        path = self.files[subject.name][index]
        volume = read_volume(path)
        lowest, highest = float(volume.hu.min()), float(volume.hu.max())
        if self.values is not None:
            volume = volume.with_hu(self.values.to_hu(volume.hu))
        moved = not same_grid(volume, subject.truth.grid, self.alignment)
        self._seen[path] = (moved, lowest, highest)
        return onto_grid(volume, subject.truth.grid, alignment=self.alignment)

    def samples(self, subject: Subject) -> list[npt.NDArray[np.float32]]:
        """Read all samples of a subject."""
        return [self.sample(subject, index) for index in range(self.num_samples)]

    def all_samples(self, subjects: Sequence[Subject]) -> Iterator[GridVolume]:
        """Read all samples of all subjects, subject by subject."""
        for subject in subjects:
            for index in range(self.num_samples):
                yield subject.truth.with_hu(self.sample(subject, index))

    @property
    def num_resampled(self) -> int:
        """How many of the volumes read so far lay on another grid."""
        return sum(moved for moved, _, _ in self._seen.values())

    def suspicion(self) -> str | None:
        """A sentence when the volumes read so far can hardly be HU although nothing else was said; else None."""
        lowest = min((low for _, low, _ in self._seen.values()), default=0.0)
        highest = max((high for _, _, high in self._seen.values()), default=0.0)
        if not self._seen or self.values is not None or highest - lowest > _NARROW_RANGE_HU:
            return None
        return (
            f"All voxels of `{self.folder}` lie between {lowest:g} and {highest:g}, which were read as HU: are they "
            "something else? State what they mean with --value_range."
        )


@dataclass(frozen=True)
class Program:
    """One program's volumes, with the control made from views shuffled between subjects where there is one.

    Attributes:
        name: how its rows are called; empty for the only program of a report.
        generated: its volumes.
        shuffled: its control.
    """

    name: str
    generated: GeneratedVolumes
    shuffled: GeneratedVolumes | None = None

    def rows(self, scorer: Scorer, subject: Subject) -> dict[str, Scores]:
        """Rows of one subject: its samples and, last, the first sample of the control."""
        rows = scorer.sample_rows(subject, self.generated.samples(subject))
        if self.shuffled is not None:
            rows[ROW_SHUFFLED] = scorer.scores(subject, self.shuffled.sample(subject, 0))
        return {row_of(self.name, row): scores for row, scores in rows.items()}

    def subjects(self, names: Sequence[str]) -> list[str]:
        """Those of some subjects that this program made volumes of."""
        folders = [self.generated, *([] if self.shuffled is None else [self.shuffled])]
        return [name for name in names if all(name in folder.files for folder in folders)]

    def settings(self) -> ProgramSettings:
        """What a report says about it."""
        generated, values = self.generated, self.generated.values
        return ProgramSettings(
            name=self.name,
            folder=str(generated.folder),
            num_samples=generated.num_samples,
            shuffled=None if self.shuffled is None else str(self.shuffled.folder),
            values=None if values is None else (values.low, values.high, values.low_hu, values.high_hu),
            alignment=generated.alignment.value,
            sampling=read_sampling(generated.folder),
        )

    def notes(self) -> list[str]:
        """Sentences about what was done to the volumes on the way."""
        notes = []
        for volumes in (self.generated, *([] if self.shuffled is None else [self.shuffled])):
            kind = "generated" if volumes is self.generated else "shuffled"
            of_program = f" of '{self.name}'" if self.name else ""
            if volumes.num_resampled:
                notes.append(
                    f"{volumes.num_resampled} {kind} volumes{of_program} lay on another grid and were resampled onto "
                    "the true one."
                )
            suspicion = volumes.suspicion()
            if suspicion:
                notes.append(suspicion)
        return notes
