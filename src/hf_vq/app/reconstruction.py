"""What the volume tokenizer keeps of a scan: its codes, and the scan again from them alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..evaluation.metrics import Window, mae_hu, psnr_3d
from ..evaluation.volumes import GridVolume
from ..pipelines.pipeline_views_to_volume import ViewsToVolumePipeline


@dataclass(frozen=True)
class Reconstruction:
    """A scan before and after the tokenizer, on the model's grid and clipped to its window.

    Attributes:
        scan: what the tokenizer got, HU.
        reconstructed: what it made of its codes, HU.
        codes: (d, h, w) int64.
        codebook_size: number of codes there are.
        window: lowest and highest HU that the model knows.
    """

    scan: GridVolume
    reconstructed: GridVolume
    codes: npt.NDArray[np.int64]
    codebook_size: int
    window: Window

    @property
    def num_codes_used(self) -> int:
        """Different codes in this scan."""
        return len(np.unique(self.codes))

    def summary(self) -> str:
        """The figures in Markdown, with the grid and the window that they are of."""
        before, after = self.scan.hu, self.reconstructed.hu
        voxels, steps = (
            " x ".join(f"{number:g}" for number in numbers) for numbers in (before.shape, self.scan.spacing)
        )
        grid = " x ".join(map(str, self.codes.shape))
        low, high = self.window
        return (
            f"**PSNR {psnr_3d(before, after, self.window):.2f} dB**, mean absolute error "
            f"{mae_hu(before, after, self.window):.0f} HU, on the model's grid of {voxels} voxels of {steps} mm, "
            f"window [{low:g}, {high:g}] HU. {self.codes.size} codes ({grid}), **{self.num_codes_used} different "
            f"ones** of the codebook's {self.codebook_size}."
        )


@torch.no_grad()
def reconstruct(pipeline: ViewsToVolumePipeline, scan: GridVolume) -> Reconstruction:
    """Encodes a scan with the pipeline's volume tokenizer and decodes it again.

    Args:
        pipeline: a loaded pipeline.
        scan: any scan in HU; it is resampled to the model's grid first.

    Raises:
        ValueError: the scan does not fit a processor without a size.
    """
    tokenizer, processor = pipeline.volume_tokenizer, pipeline.volume_processor
    inputs = processor(scan.to_nifti())
    pixel_values = inputs["pixel_values"].to(tokenizer.device, tokenizer.dtype)
    codes = tokenizer.encode(pixel_values).codes
    before, after = (
        GridVolume(processor.postprocess(each, output_type="hu")[0], inputs["geometry"][0].affine)
        for each in (pixel_values, tokenizer.decode(codes).sample)
    )
    low, high = processor.hu_window
    size = tokenizer.config.quantizer_config.codebook_size
    return Reconstruction(before, after, codes[0].cpu().numpy(), int(size), (low, high))
