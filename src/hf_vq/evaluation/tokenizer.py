"""What the volume tokenizer does to held-out scans: its reconstructions, its codes, its features."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..quantizers import CodebookUsage
from .metrics import prdc
from .volumes import GridVolume, onto_grid, read_volume

FEATURE_NAME = "volume tokenizer's encoder output before quantisation, average-pooled to 2x2x2 and flattened"
_POOLED_SIDE = 2


@dataclass(frozen=True)
class VolumeTokenizer:
    """A trained volume tokenizer with the processor that feeds it.

    Attributes:
        model: a `VQTokenizer` with `spatial_dims=3`.
        processor: the `CTVolumeProcessor` it was trained with.
        batch_size: volumes encoded at once.
    """

    model: Any
    processor: Any
    batch_size: int = 8

    @classmethod
    def from_pipeline(cls, pipeline: str, device: torch.device | str = "cpu", batch_size: int = 8) -> "VolumeTokenizer":
        """Load the volume tokenizer and its processor out of a pipeline, nothing else.

        Args:
            pipeline: folder of a saved `ViewsToVolumePipeline` or its name on the Hub.
            device: where the model runs.
            batch_size: volumes encoded at once.

        Returns:
            The tokenizer in evaluation mode.

        Raises:
            ValueError: the pipeline has no such parts.
        """
        from ..models.modeling_vq_tokenizer import VQTokenizer
        from ..processors.image_processing_ct_volume import CTVolumeProcessor

        try:
            model = VQTokenizer.from_pretrained(pipeline, subfolder="volume_tokenizer")
            processor = CTVolumeProcessor.from_pretrained(pipeline, subfolder="volume_processor")
        except OSError as error:
            raise ValueError(
                f"{pipeline}: found no volume_tokenizer and volume_processor, expected a saved ViewsToVolumePipeline; "
                f"check the path ({error})"
            ) from error
        return cls(model.to(device).eval(), processor, batch_size)

    @torch.no_grad()
    def reconstruct(self, volumes: Sequence[GridVolume]) -> list[npt.NDArray[np.float32]]:
        """Encode and decode volumes: the best that any model of these codes can reach.

        Args:
            volumes: true volumes.

        Returns:
            For each volume its reconstruction on its own grid, in HU.
        """
        results = []
        for batch, pixels, geometry in self._batches(volumes):
            decoded = self.model.decode(self.model.encode(pixels).codes).sample
            images = self.processor.postprocess(decoded.float().cpu(), output_type="nifti", geometry=geometry)
            results += [onto_grid(read_volume(image), volume) for image, volume in zip(images, batch, strict=True)]
        return results

    @torch.no_grad()
    def codes(self, volumes: Sequence[GridVolume]) -> torch.Tensor:
        """Codes of volumes.

        Args:
            volumes: any volumes.

        Returns:
            Shape (N, d, h, w), int64.
        """
        return torch.cat([self.model.encode(pixels).codes.cpu() for _, pixels, _ in self._batches(volumes)])

    @torch.no_grad()
    def features(self, volumes: Sequence[GridVolume]) -> npt.NDArray[np.float32]:
        """Features of volumes: see `feature_name`.

        Args:
            volumes: any volumes.

        Returns:
            Shape (N, 8 * channels).
        """
        rows = [
            torch.nn.functional.adaptive_avg_pool3d(self.model.encode(pixels).latents.float(), _POOLED_SIDE).flatten(1)
            for _, pixels, _ in self._batches(volumes)
        ]
        return np.asarray(torch.cat(rows).cpu().numpy())

    def usage(self, splits: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
        """Usage of the codebook.

        Args:
            splits: for each name of a set of volumes its codes, int64 of any shape.

        Returns:
            For each name `codes_used`, `codebook_size`, `used_fraction` and `perplexity`.
        """
        return {name: codebook_usage(codes, self.codebook_size) for name, codes in splits.items()}

    @property
    def feature_name(self) -> str:
        """What the features are, and whether they were learned at all."""
        batches = int(self.model.quantizer.codebook.num_batches)
        return f"{FEATURE_NAME} ({f'learned in {batches} batches' if batches else 'NOT learned: no training recorded'})"

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.model.config.quantizer_config.codebook_size)

    def _batches(self, volumes: Sequence[GridVolume]) -> Iterable[tuple[Sequence[GridVolume], torch.Tensor, Any]]:
        """Batches of volumes with their pixel values on the model's device and their geometry."""
        for start in range(0, len(volumes), self.batch_size):
            batch = volumes[start : start + self.batch_size]
            inputs = self.processor([volume.to_nifti() for volume in batch])
            yield batch, inputs["pixel_values"].to(self.model.device, self.model.dtype), inputs["geometry"]


def codebook_usage(codes: torch.Tensor, codebook_size: int) -> dict[str, float]:
    """How much of a codebook a set of volumes uses.

    Args:
        codes: int64 in [0, codebook_size), any shape.
        codebook_size: number of codes.

    Returns:
        `codes_used`, `codebook_size`, `used_fraction` and `perplexity` (exponential of the entropy, at most the size).
    """
    usage = CodebookUsage(codebook_size)
    usage.update(codes)
    figures = usage.compute()
    return {
        "codes_used": figures["active_codes"],
        "codebook_size": codebook_size,
        "used_fraction": figures["active_fraction"],
        "perplexity": figures["perplexity"],
    }


def distribution_scores(
    real_features: npt.NDArray[Any], generated_features: Mapping[str, npt.NDArray[Any]], nearest_k: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Density, coverage, precision and recall of several sets of generated volumes against one real set.

    Args:
        real_features: shape (N, F).
        generated_features: for each name of a set its features, shape (M, F).
        nearest_k: neighbour that sets the radius of a neighbourhood.

    Returns:
        For each name its scores and `num_generated`; and a sentence for each set too small to be judged.

    Raises:
        ValueError: as `prdc`, except for too few rows.
        ImportError: prdc isn't installed.
    """
    rows: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for name, features in generated_features.items():
        fewest = min(len(real_features), len(features))
        if fewest < nearest_k + 2:
            notes.append(f"Density and the like of '{name}' left out: {fewest} volumes, nearest_k = {nearest_k}.")
            continue
        rows[name] = {"num_generated": len(features), **prdc(real_features, features, nearest_k)}
    return rows, notes
