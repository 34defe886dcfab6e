"""Output classes of the pipelines."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput


@dataclass
class ViewsToVolumePipelineOutput(BaseOutput):
    """What `ViewsToVolumePipeline` returns; volumes of one subject stand together, in the order of the subjects.

    Args:
        volumes: depends on `output_type`: `"nifti"`: list of `nibabel.Nifti1Image` (HU, int16); `"hu"`: `np.ndarray`
            `(B, D, H, W)` float32; `"pt"`: tensor `(B, 1, D, H, W)` in the tokenizer's range; `"latent"`: the codes.
        codes: `(B, *code_grid)` int64.
    """

    volumes: Any
    codes: torch.Tensor


@dataclass
class CodeGenerationPipelineOutput(BaseOutput):
    """What `CodeGenerationPipeline` returns; images of one prompt stand together, in the order of the prompts.

    Args:
        images: depends on `output_type`: `"pil"`: list of `PIL.Image.Image`; `"np"`: `np.ndarray` `(B, H, W, C)`
            float32 in [0, 1]; `"pt"`: tensor `(B, C, *spatial)` in [0, 1]; `"latent"`: the codes.
        codes: `(B, *code_grid)` int64.
    """

    images: Any
    codes: torch.Tensor
