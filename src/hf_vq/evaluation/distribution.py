"""Density, coverage, precision and recall of generated volumes, in the features of a volume tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .baseline_volumes import BaselineVolumes
from .metrics import FEWEST_FOR_DISTRIBUTIONS, prdc
from .programs import Program
from .protocol import Subject
from .report import BASELINE_ROWS, row_of
from .tokenizer import EncodedVolumes, VolumeTokenizer
from .volumes import GridVolume

SET_ALL_SAMPLES = "generated, all samples"
SET_ONE_SAMPLE = "generated, one sample per subject"
SET_TRAINING = "training volumes, as if generated"


@dataclass(frozen=True)
class FeatureSet:
    """Features of some volumes.

    Attributes:
        features: shape (M, F).
        num_subjects: subjects that the volumes are of, at most M.
    """

    features: npt.NDArray[Any]
    num_subjects: int


def encode_held_out(
    tokenizer: VolumeTokenizer, split: str, splits: Mapping[str, Sequence[Subject]]
) -> dict[str, EncodedVolumes]:
    """Encode the true volumes of the evaluated split and of the validation split, each once.

    Args:
        tokenizer: the tokenizer.
        split: name of the evaluated split.
        splits: subjects of each split.

    Returns:
        Under the joined names both splits, under the split's name it alone; once where they are the same.
    """
    names = [split] if split == "validation" else [split, "validation"]
    encoded = tokenizer.encode(subject.truth for name in names for subject in splits[name])
    return {" + ".join(names): encoded, split: encoded.first(len(splits[split]))}


def feature_sets(
    tokenizer: VolumeTokenizer, subjects: Sequence[Subject], programs: Sequence[Program], baselines: BaselineVolumes
) -> dict[str, FeatureSet]:
    """Features of the programs' volumes and of the baselines'.

    Args:
        tokenizer: what makes the features.
        subjects: the evaluated subjects.
        programs: the programs.
        baselines: the baselines' volumes for these subjects.

    Returns:
        For each program all its samples and, where it has several, the first of each subject; and the baselines.
    """
    sets = {}
    for program in programs:
        features = tokenizer.encode(program.generated.all_samples(subjects)).features
        count = program.generated.num_samples
        sets[row_of(program.name, SET_ALL_SAMPLES)] = FeatureSet(features, len(subjects))
        if count > 1:
            sets[row_of(program.name, SET_ONE_SAMPLE)] = FeatureSet(features[::count], len(subjects))

    def predictions(name: str) -> Iterator[GridVolume]:
        for index, subject in enumerate(subjects):
            yield subject.truth.with_hu(baselines.volumes(index, subject)[name])

    for name in BASELINE_ROWS:
        sets[name] = FeatureSet(tokenizer.encode(predictions(name)).features, len(subjects))
    return sets


def training_set(tokenizer: VolumeTokenizer, train: Sequence[Subject], count: int, seed: int) -> FeatureSet:
    """Features of some training volumes: what a generator scores whose volumes are as good as real ones.

    Args:
        tokenizer: what makes the features.
        train: training subjects.
        count: volumes wanted; fewer when there are fewer.
        seed: seed of the choice.
    """
    count = min(count, len(train))
    chosen = sorted(np.random.default_rng(seed).choice(len(train), size=count, replace=False).tolist())
    return FeatureSet(tokenizer.encode(train[index].truth for index in chosen).features, count)


def distribution_scores(
    real_features: npt.NDArray[Any], generated: Mapping[str, FeatureSet], nearest_k: int, learned: bool = True
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Density, coverage, precision and recall of several sets of generated volumes against one real set.

    Args:
        real_features: shape (N, F).
        generated: for each name of a set its features.
        nearest_k: neighbour that sets the radius of a neighbourhood.
        learned: whether the features come from a trained network.

    Returns:
        For each name its scores, `num_generated`, `num_subjects` and `reliable`, which is False with fewer than
        `FEWEST_FOR_DISTRIBUTIONS` real volumes or subjects and with features that weren't learned; and a sentence for
        each set with fewer than `nearest_k + 2` volumes, which is left out.

    Raises:
        ValueError: as `prdc`, except for too few rows.
        ImportError: prdc isn't installed.
    """
    rows: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, one in generated.items():
        fewest = min(len(real_features), len(one.features))
        if fewest < nearest_k + 2:
            notes.append(f"Density and the like of '{name}' left out: {fewest} volumes, nearest_k = {nearest_k}.")
            continue
        rows[name] = {
            "num_generated": len(one.features),
            "num_subjects": one.num_subjects,
            "reliable": learned and min(len(real_features), one.num_subjects) >= FEWEST_FOR_DISTRIBUTIONS,
            **prdc(real_features, one.features, nearest_k),
        }
    return rows, notes
