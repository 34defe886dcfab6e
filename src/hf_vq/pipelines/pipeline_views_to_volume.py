"""Pipeline from 2D views to 3D volumes."""

from collections.abc import Mapping
from typing import Any

import torch

from ..models import CodeTransformer, VQTokenizer
from ..processors import CTVolumeProcessor, XrayImageProcessor
from ..schedulers import AbsorbingScheduler
from .code_sampling import CodeSamplingPipeline, StepCallback, check_belong_together, shared_pairs
from .pipeline_output import ViewsToVolumePipelineOutput

OUTPUT_TYPES = ("nifti", "hu", "pt", "latent")


class ViewsToVolumePipeline(CodeSamplingPipeline):
    r"""Generates CT volumes from X-ray views by absorbing diffusion over volume codes (Corona-Figueroa et al., 2023).

    Args:
        volume_tokenizer: 3D `VQTokenizer` of the volumes.
        view_tokenizer: 2D `VQTokenizer` of the views.
        transformer: `CodeTransformer` over the volume's codes, conditional on the views' codes.
        scheduler: `AbsorbingScheduler`; diffusers' `AmusedScheduler` (confidence order, MaskGIT) works in its place.
        volume_processor: `CTVolumeProcessor`, from the tokenizer's range back to HU and millimetres.
        view_processor: `XrayImageProcessor`, from images to the tokenizer's range.

    Example:
        >>> pipe = ViewsToVolumePipeline.from_pretrained("quickstart/pipeline")
        >>> views = {"frontal": Image.open("frontal.png"), "lateral": Image.open("lateral.png")}
        >>> pipe(views=views, generator=torch.Generator().manual_seed(0)).volumes[0].to_filename("ct.nii.gz")
    """

    model_cpu_offload_seq = "view_tokenizer->transformer->volume_tokenizer"

    def __init__(
        self,
        volume_tokenizer: VQTokenizer,
        view_tokenizer: VQTokenizer,
        transformer: CodeTransformer,
        scheduler: AbsorbingScheduler,
        volume_processor: CTVolumeProcessor,
        view_processor: XrayImageProcessor,
    ) -> None:
        super().__init__()
        _check_fit(volume_tokenizer, view_tokenizer, transformer, scheduler)
        self.register_modules(
            volume_tokenizer=volume_tokenizer,
            view_tokenizer=view_tokenizer,
            transformer=transformer,
            scheduler=scheduler,
            volume_processor=volume_processor,
            view_processor=view_processor,
        )

    @torch.no_grad()
    def __call__(
        self,
        views: Mapping[str, Any],
        num_inference_steps: int = 32,
        num_volumes_per_prompt: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "nifti",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ViewsToVolumePipelineOutput | tuple[Any, torch.Tensor]:
        """Generates volumes that agree with the views.

        Args:
            views: for each view of the model, by name, an image or a list with one image per subject; whatever the view
                processor takes (path, PIL image, array).
            num_inference_steps: network evaluations, at least 1.
            num_volumes_per_prompt: volumes for each subject, at least 1.
            temperature: divides the logits; 0 takes the likeliest codes. (Not used by other schedulers.)
            top_p: draws from the smallest set of codes holding this probability. (Not used by other schedulers.)
            generator: source of all randomness; one, or a list with one per volume.
            latents: `(B, *code_grid)` int64 codes to start from, `transformer.mask_token_id` where to generate.
            output_type: `"nifti"`, `"hu"`, `"pt"` or `"latent"`; see `ViewsToVolumePipelineOutput`.
            return_dict: `False` for the tuple `(volumes, codes)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"codes": codes})` after each step; may
                return other codes.
            callback_on_step_end_tensor_inputs: which tensors the callback gets, a subset of `["codes"]`, which is the
                default.

        Returns:
            `ViewsToVolumePipelineOutput`, volumes of a subject one after another.

        Raises:
            ValueError: if views are missing or unknown, differ in number, or an argument is out of range.
        """
        self._check_sampling(num_inference_steps, output_type, OUTPUT_TYPES, callback_on_step_end_tensor_inputs)
        self._check_arguments(views, num_volumes_per_prompt, output_type)
        context = self.encode_views(views).repeat_interleave(num_volumes_per_prompt, dim=0)
        codes = self.prepare_latents(len(context), latents)
        context_arguments = self._context_arguments(context)
        codes = self.sample_codes(
            codes,
            lambda codes: self.transformer(codes, **context_arguments).sample,
            num_inference_steps,
            self._step_arguments(generator, temperature, top_p),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        volumes = self.decode_codes(codes, output_type)
        self.maybe_free_model_hooks()
        return ViewsToVolumePipelineOutput(volumes, codes) if return_dict else (volumes, codes)

    def encode_views(self, views: Mapping[str, Any]) -> torch.Tensor:
        """Context of the transformer: embeddings of the views' codes through the effective codebook.

        Args:
            views: image or list of images for each view name of the model.

        Returns:
            `(subjects, V, context_tokens, context_dim)`.
        """
        contexts = []
        for name in self.transformer.view_names:
            pixel_values = self.view_processor(_as_list(views[name]), return_tensors="pt")["pixel_values"]
            pixel_values = pixel_values.to(self._execution_device, self.view_tokenizer.dtype)
            contexts.append(self.view_tokenizer.embed_codes(self.view_tokenizer.encode(pixel_values).codes))
        return torch.stack(contexts, dim=1).to(self.transformer.dtype)

    def decode_codes(self, codes: torch.Tensor, output_type: str = "pt") -> Any:
        """Volumes of codes `(B, *code_grid)`, in the form that `output_type` names."""
        if output_type == "latent":
            return codes
        pixel_values = self.volume_tokenizer.decode(codes).sample
        return (
            pixel_values
            if output_type == "pt"
            else self.volume_processor.postprocess(pixel_values, output_type=output_type)
        )

    def _context_arguments(self, context: torch.Tensor) -> dict[str, Any]:
        if self.transformer.config.context_attention == "prefix":
            return {"context_key_values": self.transformer.encode_context(context)}
        return {"context": context}

    def _check_arguments(self, views: Mapping[str, Any], num_volumes_per_prompt: int, output_type: str) -> None:
        if output_type == "nifti" and self.volume_processor.spacing is None:
            raise ValueError(
                "output_type='nifti' needs the voxel size, and volume_processor.spacing is None; set it to mm along "
                "D, H, W or choose another output_type"
            )
        if num_volumes_per_prompt < 1:
            raise ValueError(f"num_volumes_per_prompt must be at least 1; got {num_volumes_per_prompt}")
        _check_views(views, self.transformer.view_names)


def _check_views(views: Mapping[str, Any], expected: list[str]) -> None:
    if not isinstance(views, Mapping):
        raise ValueError(
            f"views must be a dict of images by view name, one of each of {expected}; got {type(views).__name__}"
        )
    missing, unknown = sorted(set(expected) - set(views)), sorted(set(views) - set(expected))
    if missing or unknown:
        raise ValueError(f"this model takes the views {expected}; missing: {missing}, unknown: {unknown}")
    counts = {name: len(_as_list(images)) for name, images in views.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"every view needs the same number of images, one per subject and at least one; got {counts}")


def _check_fit(
    volume_tokenizer: VQTokenizer,
    view_tokenizer: VQTokenizer,
    transformer: CodeTransformer,
    scheduler: AbsorbingScheduler,
) -> None:
    check_belong_together(
        {
            **shared_pairs("volume_tokenizer", volume_tokenizer, transformer, scheduler),
            "transformer.context_dim and view_tokenizer's codebook_dim": (
                transformer.config.context_dim,
                view_tokenizer.config.quantizer_config.codebook_dim,
            ),
            "transformer.num_classes and None, for a model without classes": (transformer.config.num_classes, None),
            "volume_tokenizer's spatial_dims and 3": (volume_tokenizer.config.spatial_dims, 3),
            "view_tokenizer's spatial_dims and 2": (view_tokenizer.config.spatial_dims, 2),
        }
    )


def _as_list(images: Any) -> list[Any]:
    return list(images) if isinstance(images, (list, tuple)) else [images]
