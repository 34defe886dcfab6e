"""What the volume tokenizer does to held-out scans: its reconstructions, its codes, its features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..quantizers import CodebookUsage
from ..quantizers.codebook import codebooks_of
from .metrics import prdc
from .volumes import GridVolume, onto_grid, read_volume

FEATURE_NAME = "volume tokenizer's encoder output before quantisation, average-pooled to 2x2x2 and flattened"
_POOLED_SIDE = 2


@dataclass(frozen=True)
class EncodedVolumes:
    """Volumes as a tokenizer sees them.

    Attributes:
        volumes: the N volumes themselves.
        codes: shape (N, d, h, w), int64, on the CPU.
        features: shape (N, 8 * channels); see `VolumeTokenizer.feature_name`.
        geometry: the processor's `VolumeGeometry` of each volume.
    """

    volumes: list[GridVolume]
    codes: torch.Tensor
    features: npt.NDArray[np.float32]
    geometry: list[Any]

    def first(self, count: int) -> "EncodedVolumes":
        """The first volumes alone."""
        return EncodedVolumes(self.volumes[:count], self.codes[:count], self.features[:count], self.geometry[:count])


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
            ValueError: the pipeline has no such parts, or its tokenizer is another model or lacks weights.
        """
        from ..models.loading import load_tokenizer
        from ..processors.image_processing_ct_volume import CTVolumeProcessor

        try:
            folder = _local_folder(pipeline)
            processor = CTVolumeProcessor.from_pretrained(folder / "volume_processor")
            model = load_tokenizer(folder / "volume_tokenizer", 3, device)
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"{pipeline}: found no volume_tokenizer and volume_processor, expected a saved ViewsToVolumePipeline; "
                f"check the path ({error})"
            ) from error
        return cls(model, processor, batch_size)

    @torch.no_grad()
    def encode(self, volumes: Sequence[GridVolume]) -> EncodedVolumes:
        """Codes and features of volumes.

        Args:
            volumes: any volumes, at least one.

        Returns:
            The volumes as the model sees them.
        """
        codes, features, geometry = [], [], []
        for start in range(0, len(volumes), self.batch_size):
            batch = volumes[start : start + self.batch_size]
            inputs = self.processor([volume.to_nifti() for volume in batch])
            encoded = self.model.encode(inputs["pixel_values"].to(self.model.device, self.model.dtype))
            pooled = torch.nn.functional.adaptive_avg_pool3d(encoded.latents.float(), _POOLED_SIDE)
            codes.append(encoded.codes.cpu())
            features.append(pooled.flatten(1).cpu().numpy())
            geometry += inputs["geometry"]
        return EncodedVolumes(list(volumes), torch.cat(codes), np.concatenate(features), geometry)

    @torch.no_grad()
    def decode(self, encoded: EncodedVolumes) -> list[npt.NDArray[np.float32]]:
        """Reconstructions of volumes: the best that any model of these codes can reach.

        Args:
            encoded: what `encode` returned.

        Returns:
            For each volume its reconstruction on its own grid, in HU.
        """
        results = []
        for start in range(0, len(encoded.volumes), self.batch_size):
            batch = slice(start, start + self.batch_size)
            decoded = self.model.decode(encoded.codes[batch].to(self.model.device)).sample
            images = self.processor.postprocess(
                decoded.float().cpu(), output_type="nifti", geometry=encoded.geometry[batch]
            )
            pairs = zip(images, encoded.volumes[batch], strict=True)
            results += [onto_grid(read_volume(image), volume) for image, volume in pairs]
        return results

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
        codebooks = codebooks_of(self.model)
        if not codebooks:  # nothing counts the training of a quantizer that learns no codes
            return FEATURE_NAME
        batches = int(codebooks[0].num_batches)
        return f"{FEATURE_NAME} ({f'learned in {batches} batches' if batches else 'NOT learned: no training recorded'})"

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.model.config.quantizer_config.codebook_size)


def _local_folder(pipeline: str) -> Path:
    """Folder that holds the parts of a pipeline that are read here, fetched from the Hub where it isn't a folder."""
    if Path(pipeline).is_dir():
        return Path(pipeline)
    return Path(snapshot_download(pipeline, allow_patterns=["volume_tokenizer/*", "volume_processor/*"]))


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
