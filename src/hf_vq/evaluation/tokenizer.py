"""What the volume tokenizer does to held-out scans: its reconstructions, its codes, its features."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from ..files import looks_like_path
from ..quantizers import CodebookUsage
from ..quantizers.codebook import codebooks_of
from .volumes import Grid, GridVolume, onto_grid, read_volume

FEATURE_NAME = "volume tokenizer's encoder output before quantisation, average-pooled to 2x2x2 and flattened"
_POOLED_SIDE = 2


@dataclass(frozen=True)
class EncodedVolumes:
    """N volumes as a tokenizer sees them; the volumes themselves are not kept.

    Attributes:
        codes: shape (N, d, h, w), int64, on the CPU.
        features: shape (N, 8 * channels); see `VolumeTokenizer.feature_name`.
        geometry: the processor's `VolumeGeometry` of each volume.
        grids: the grid of each volume.
    """

    codes: torch.Tensor
    features: npt.NDArray[np.float32]
    geometry: list[Any]
    grids: list[Grid]

    def __len__(self) -> int:
        """Returns the number of volumes."""
        return len(self.grids)

    def first(self, count: int) -> "EncodedVolumes":
        """The first volumes alone."""
        return EncodedVolumes(self.codes[:count], self.features[:count], self.geometry[:count], self.grids[:count])


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
        try:
            folder = _local_folder(pipeline, ["volume_tokenizer/*", "volume_processor/*"])
            if not (folder / "volume_tokenizer").is_dir():
                raise FileNotFoundError(f"no volume_tokenizer in {folder}")
            return cls._load(folder / "volume_tokenizer", folder / "volume_processor", device, batch_size)
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"{pipeline}: found no volume_tokenizer and volume_processor, expected a saved ViewsToVolumePipeline; "
                f"check the path ({error})"
            ) from error

    @classmethod
    def from_tokenizer(
        cls, tokenizer: str, device: torch.device | str = "cpu", batch_size: int = 8
    ) -> "VolumeTokenizer":
        """Load a volume tokenizer as train_tokenizer.py writes it, with its processor.

        Args:
            tokenizer: folder of a saved 3D `VQTokenizer` with its `CTVolumeProcessor`, or its name on the Hub.
            device: where the model runs.
            batch_size: volumes encoded at once.

        Returns:
            The tokenizer in evaluation mode.

        Raises:
            ValueError: there is no such tokenizer, it is another model, lacks weights, or has no processor.
        """
        try:
            folder = _local_folder(tokenizer, ["*.json", "*.safetensors"])
            return cls._load(folder, folder, device, batch_size)
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"{tokenizer}: found no volume tokenizer with its processor, expected a 3D VQTokenizer as "
                f"train_tokenizer.py writes it; check the path ({error})"
            ) from error

    @classmethod
    def _load(cls, tokenizer: Path, processor: Path, device: torch.device | str, batch_size: int) -> "VolumeTokenizer":
        from ..models.loading import load_tokenizer
        from ..processors.image_processing_ct_volume import CTVolumeProcessor

        return cls(load_tokenizer(tokenizer, 3, device), CTVolumeProcessor.from_pretrained(processor), batch_size)

    @torch.no_grad()
    def encode(self, volumes: Iterable[GridVolume]) -> EncodedVolumes:
        """Codes and features of volumes.

        Args:
            volumes: any volumes, at least one; an iterator is read one batch at a time.

        Returns:
            What the model sees of them.
        """
        codes, features, geometry, grids = [], [], [], []
        remaining = iter(volumes)
        while batch := list(islice(remaining, self.batch_size)):
            inputs = self.processor([volume.to_nifti() for volume in batch])
            encoded = self.model.encode(inputs["pixel_values"].to(self.model.device, self.model.dtype))
            pooled = torch.nn.functional.adaptive_avg_pool3d(encoded.latents.float(), _POOLED_SIDE)
            codes.append(encoded.codes.cpu())
            features.append(pooled.flatten(1).cpu().numpy())
            geometry += inputs["geometry"]
            grids += [volume.grid for volume in batch]
        return EncodedVolumes(torch.cat(codes), np.concatenate(features), geometry, grids)

    @torch.no_grad()
    def decode(self, encoded: EncodedVolumes) -> Iterator[npt.NDArray[np.float32]]:
        """Reconstructions of volumes, a batch at a time: the best that any model of these codes can reach.

        Args:
            encoded: what `encode` returned.

        Yields:
            For each volume its reconstruction on its own grid, in HU.
        """
        for start in range(0, len(encoded), self.batch_size):
            batch = slice(start, start + self.batch_size)
            decoded = self.model.decode(encoded.codes[batch].to(self.model.device)).sample
            images = self.processor.postprocess(
                decoded.float().cpu(), output_type="nifti", geometry=encoded.geometry[batch]
            )
            for image, grid in zip(images, encoded.grids[batch], strict=True):
                yield onto_grid(read_volume(image), grid)

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
        batches = self._training_batches
        if batches is None:
            return FEATURE_NAME
        return f"{FEATURE_NAME} ({f'learned in {batches} batches' if batches else 'NOT learned: no training recorded'})"

    @property
    def is_learned(self) -> bool:
        """Whether the features were learned, as far as the model records it."""
        return self._training_batches != 0

    @property
    def _training_batches(self) -> int | None:
        """Batches of its training; None for a quantizer that learns no codes, where nothing counts them."""
        codebooks = codebooks_of(self.model)
        return int(codebooks[0].num_batches) if codebooks else None

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.model.config.quantizer_config.codebook_size)


def pipeline_views(pipeline: str) -> list[str] | None:
    """Views that a pipeline's transformer reads.

    Args:
        pipeline: folder of a saved `ViewsToVolumePipeline` or its name on the Hub.

    Returns:
        Their names; None where its config names none.

    Raises:
        ValueError: the pipeline is not found.
    """
    try:
        config = _local_folder(pipeline, ["transformer/config.json"]) / "transformer" / "config.json"
    except (OSError, HFValidationError) as error:
        raise ValueError(f"{pipeline}: found no pipeline, expected a folder or a name on the Hub; check it") from error
    if not config.is_file():
        return None
    return list(json.loads(config.read_text(encoding="utf-8")).get("view_axes") or []) or None


def _local_folder(source: str, patterns: list[str]) -> Path:
    """Folder with the parts of a model that are read here, fetched from the Hub where it can't be meant as a path."""
    if Path(source).is_dir():
        return Path(source)
    if looks_like_path(source):
        raise FileNotFoundError("no such folder, and what looks like a path is not looked for on the Hub")
    return Path(snapshot_download(source, allow_patterns=patterns))


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
