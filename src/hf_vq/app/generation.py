"""From the page's controls to volumes: what a pipeline can do, one call of it, and the files to take home."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedScheduler

from ..evaluation.volumes import GridVolume, read_volume
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline

MAX_STEPS = 256
MAX_VOLUMES = 8
MAX_GUIDANCE = 10.0
MAX_SEED = 2**31 - 1
MEAN = "mean of the samples"

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Abilities:
    """What a pipeline takes, so that a page shows no control that does nothing.

    Attributes:
        view_axes: for each view by name the directions in which its rows and columns grow, in the model's order.
        some_views: whether it does with some of its views.
        guidance: whether it takes a guidance scale.
        classes: numbers of its classes by name; empty for a model without any.
        class_required: whether a class must be chosen.
        views_rendered: whether it was trained on rendered views only.
    """

    view_axes: dict[str, tuple[str, str]]
    some_views: bool
    guidance: bool
    classes: dict[str, int]
    class_required: bool
    views_rendered: bool

    @classmethod
    def of(cls, pipeline: ViewsToVolumePipeline) -> "Abilities":
        """What a loaded pipeline takes."""
        transformer = pipeline.transformer
        config = transformer.config
        classes = transformer.label2id or {str(number): number for number in range(config.num_classes or 0)}
        axes = {name: (config.view_axes[name][0], config.view_axes[name][1]) for name in transformer.view_names}
        return cls(
            view_axes=axes,
            some_views=bool(config.view_dropout),
            guidance=bool(config.context_dropout),
            classes=classes,
            class_required=bool(classes) and not config.label_dropout,
            views_rendered=pipeline.view_processor.views_rendered,
        )


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Attributes:
        num_inference_steps: 1 to `MAX_STEPS`.
        num_volumes: samples, 1 to `MAX_VOLUMES`.
        seed: of the first sample, 0 to `MAX_SEED`; each further sample has the next one.
        guidance_scale: 0 to `MAX_GUIDANCE`, 1 for none.
        class_number: one of the model's classes, or None.

    Raises:
        ValueError: a number is not whole or out of range.
    """

    num_inference_steps: int = 32
    num_volumes: int = 1
    seed: int = 0
    guidance_scale: float = 1.0
    class_number: int | None = None

    def __post_init__(self) -> None:
        for name, value, lowest, highest in (
            ("Steps", self.num_inference_steps, 1, MAX_STEPS),
            ("Samples", self.num_volumes, 1, MAX_VOLUMES),
            ("Seed", self.seed, 0, MAX_SEED),
        ):
            if not (isinstance(value, int) and lowest <= value <= highest):
                raise ValueError(
                    f"{name}: found {value}, expected a whole number from {lowest} to {highest}; change it"
                )
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= MAX_GUIDANCE):
            raise ValueError(f"Guidance: found {self.guidance_scale}, expected 0 to {MAX_GUIDANCE:g}; change it")


@dataclass(frozen=True)
class Generated:
    """Volumes drawn for one patient.

    Attributes:
        images: nibabel images by the name of their file without suffix, as they are downloaded.
        samples: the volumes, HU.
        mean: mean over the samples; None for a single one.
        std: standard deviation over them in HU, on the same grid; None for a single one.
    """

    images: dict[str, Any]
    samples: list[GridVolume]
    mean: GridVolume | None = None
    std: GridVolume | None = None

    @property
    def volumes(self) -> dict[str, GridVolume]:
        """What can be looked at, by name: the mean first where there is one, then the samples."""
        named = {f"sample {number}": volume for number, volume in enumerate(self.samples, start=1)}
        return named if self.mean is None else {MEAN: self.mean, **named}

    def volume(self, name: str | None) -> GridVolume:
        """The volume of a name, or the first one, since a name may be of an earlier result."""
        return self.volumes.get(name or "", next(iter(self.volumes.values())))


def generate(
    pipeline: ViewsToVolumePipeline,
    views: Mapping[str, Any],
    settings: Settings,
    on_step: OnStep | None = None,
) -> Generated:
    """Draws volumes for one patient.

    Sample k has the seed `settings.seed + k - 1`, so that it can be drawn again alone.

    Args:
        pipeline: a loaded pipeline.
        views: images of the views that there are, by name.
        settings: how to sample.
        on_step: called with the number of steps done and of all steps.

    Raises:
        ValueError: views or settings are not what the model was trained for.
    """
    _check_views(Abilities.of(pipeline), views, settings)

    def report(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(step + 1, pipeline.num_timesteps)
        return tensors

    several = settings.num_volumes > 1
    output: Any = pipeline(
        dict(views),
        num_inference_steps=settings.num_inference_steps,
        num_volumes_per_prompt=settings.num_volumes,
        generator=_generators(pipeline, settings),
        output_type="nifti",
        callback_on_step_end=report,
        class_labels=settings.class_number,
        guidance_scale=settings.guidance_scale,
        return_uncertainty=several,
    )
    images = {f"ct_seed{settings.seed + number}": image for number, image in enumerate(output.volumes)}
    samples = [read_volume(image) for image in output.volumes]
    if not several:
        return Generated(images, samples)
    (mean,), (std,) = output.mean, output.std
    statistics = {f"ct_mean_of_{len(samples)}": mean, f"ct_standard_deviation_of_{len(samples)}": std}
    return Generated({**images, **statistics}, samples, read_volume(mean), read_volume(std))


def save_images(generated: Generated, folder: Path) -> list[Path]:
    """Writes all volumes as NIfTI (.nii.gz) into an existing folder and returns the files."""
    paths = [folder / f"{name}.nii.gz" for name in generated.images]
    for path, image in zip(paths, generated.images.values(), strict=True):
        image.to_filename(path)
    return paths


def summary(generated: Generated, settings: Settings, seconds: float) -> str:
    """One line about what was drawn."""
    volume = generated.samples[0]
    voxels, steps = (" x ".join(f"{number:g}" for number in numbers) for numbers in (volume.hu.shape, volume.spacing))
    count = len(generated.samples)
    drawn = f"1 sample, seed {settings.seed}"
    if count > 1:
        drawn = f"{count} samples, seeds {settings.seed} to {settings.seed + count - 1}"
    return f"{drawn}: {settings.num_inference_steps} steps in {seconds:.1f} s; {voxels} voxels of {steps} mm."


def _generators(pipeline: ViewsToVolumePipeline, settings: Settings) -> Any:
    """One source of randomness per sample, or one for all where the scheduler draws for the whole batch."""
    generators = [torch.Generator().manual_seed(settings.seed + number) for number in range(settings.num_volumes)]
    return generators[0] if isinstance(pipeline.scheduler, AmusedScheduler) else generators


def _check_views(abilities: Abilities, views: Mapping[str, Any], settings: Settings) -> None:
    """Raises ValueError in the page's words for what the pipeline would refuse in its own."""
    missing = [name for name in abilities.view_axes if name not in views]
    if missing and (not views or not abilities.some_views):
        wanted = "at least one of its views" if abilities.some_views else "all of its views"
        raise ValueError(f"This model needs {wanted}; missing: {', '.join(missing)}. Choose an example or upload them.")
    if abilities.class_required and settings.class_number is None:
        raise ValueError(f"This model needs a class, one of {list(abilities.classes)}. Choose one.")
