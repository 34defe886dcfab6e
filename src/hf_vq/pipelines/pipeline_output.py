"""Output classes of the pipelines."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput


@dataclass
class ViewsToVolumePipelineOutput(BaseOutput):
    """What `ViewsToVolumePipeline` returns; volumes of one subject stand together, in the order of the subjects.

    B is the number of subjects times `num_volumes_per_prompt`; with `select_by_reprojection`, the number of subjects.

    Args:
        volumes: depends on `output_type`: `"nifti"`: list of `nibabel.Nifti1Image` (HU, int16); `"hu"`: `np.ndarray`
            `(B, D, H, W)` float32; `"pt"`: tensor `(B, 1, D, H, W)` in the tokenizer's range; `"latent"`: the codes.
        codes: `(B, *code_grid)` int64.
        mean: with `return_uncertainty`, mean over all volumes drawn for a subject, voxel by voxel, one for each subject
            in the form of `volumes`: HU with `"nifti"` (float32) and `"hu"`, the tokenizer's range with `"pt"`.
        std: with `return_uncertainty`, standard deviation over them (n - 1 in the denominator), in form and unit as
            `mean`.
        reprojection_errors: with `select_by_reprojection`, `(subjects, num_volumes_per_prompt)` float32, mean squared
            error of the re-rendered views of every volume drawn, in the view processor's output range.
    """

    volumes: Any
    codes: torch.Tensor
    mean: Any = None
    std: Any = None
    reprojection_errors: torch.Tensor | None = None


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
