"""Pipeline from 2D views to 3D volumes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..models import CodeTransformer, VQTokenizer
from ..processors import BeamGeometry, CTVolumeProcessor, XrayImageProcessor
from ..processors.geometry import grid_affine, import_nibabel, to_array_axes
from ..schedulers import AbsorbingScheduler
from .code_sampling import (
    CodeSamplingPipeline,
    PredictLogits,
    StepCallback,
    check_belong_together,
    check_count,
    shared_pairs,
)
from .conditions import check_guidance_scale, check_label_dropout, guided_logits, prompt_labels
from .given_views import GivenViews, read_views
from .pipeline_output import ViewsToVolumePipelineOutput
from .reprojection import check_can_be_rendered, reprojection_errors

OUTPUT_TYPES = ("nifti", "hu", "pt", "latent")


class ViewsToVolumePipeline(CodeSamplingPipeline):
    r"""Generates CT volumes from X-ray views by absorbing diffusion over volume codes (Corona-Figueroa et al., 2023).

    On wish with classifier-free guidance (Ho & Salimans, 2022) of the logits by the views:
    \(l_\text{none} + s\,(l_\text{views} - l_\text{none})\), s being `guidance_scale`. A class label, where the model
    has classes, stands in both terms.

    Args:
        volume_tokenizer: 3D `VQTokenizer` of the volumes.
        view_tokenizer: 2D `VQTokenizer` of the views.
        transformer: `CodeTransformer` over the volume's codes, conditional on the views' codes and perhaps on a class.
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
        views: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        num_inference_steps: int = 16,
        num_volumes_per_prompt: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "nifti",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        class_labels: int | str | Sequence[int | str | None] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        return_uncertainty: bool = False,
        select_by_reprojection: bool = False,
        beam: BeamGeometry | None = None,
    ) -> ViewsToVolumePipelineOutput | tuple[Any, ...]:
        """Generates volumes that agree with the views.

        Args:
            views: for each view, by name and in any order, an image or a list with one image per subject; whatever the
                view processor takes (path, PIL image, array). Or for each subject a dict of its images by view name, in
                a list. A model trained with `view_dropout` does with some of its views: leave out those that nobody
                has, and put `None` where a subject has none. One trained with `context_dropout` does with no view at
                all.
            num_inference_steps: steps, at least 1; each is at most one network evaluation, two with guidance.
            num_volumes_per_prompt: volumes for each subject, at least 1.
            temperature: divides the logits; 0 takes the likeliest codes. (Not used by other schedulers.)
            top_p: draws from the smallest set of codes holding this probability. (Not used by other schedulers.)
            generator: source of all randomness; one, or a list with one per volume.
            latents: `(B, *code_grid)` int64 codes to start from, `transformer.mask_token_id` where to generate.
            output_type: `"nifti"`, `"hu"`, `"pt"` or `"latent"`; see `ViewsToVolumePipelineOutput`.
            return_dict: `False` for the tuple `(volumes, codes)`, followed by what else was asked for in the order of
                `ViewsToVolumePipelineOutput`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": codes})` after each step;
                returns such a dict, perhaps with other codes `(B, N)`. It may change `pipeline._guidance_scale`.
            callback_on_step_end_tensor_inputs: which tensors the callback gets, a subset of `["latents"]`, which is the
                default.
            class_labels: for a model with classes, number or name of a class, or a list with one per subject; -1 or
                `None` for no label.
            guidance_scale: 1 is the model as it is, more keeps closer to the views, 0 ignores them. Other values than 1
                need a model trained with `context_dropout`.
            return_uncertainty: also return each subject's mean and standard deviation over its volumes, at least 2.
            select_by_reprojection: draw `num_volumes_per_prompt` volumes for each subject and return the one whose
                views, rendered from it, have the least mean squared error to the given ones.
            beam: rays with which `select_by_reprojection` renders; parallel by default.

        Returns:
            `ViewsToVolumePipelineOutput`, volumes of a subject one after another.

        Raises:
            ValueError: if views are unknown, differ in number or are fewer than the model was trained for, a label is
                unknown, or an argument is out of range or asks for what the components cannot do.
        """
        self._check_sampling(num_inference_steps, output_type, OUTPUT_TYPES, callback_on_step_end_tensor_inputs)
        self._check_arguments(
            num_volumes_per_prompt, guidance_scale, output_type, return_uncertainty, select_by_reprojection
        )
        given = read_views(views, self.transformer, self.view_processor)
        if select_by_reprojection:
            check_can_be_rendered(given)
        labels = self._labels(class_labels, given.num_subjects, num_volumes_per_prompt)
        self._guidance_scale = guidance_scale
        codes = self.prepare_latents(given.num_subjects * num_volumes_per_prompt, latents)
        codes = self.sample_codes(
            codes,
            self._predictor(given, labels, num_volumes_per_prompt),
            num_inference_steps,
            self._step_arguments(generator, temperature, top_p),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        output = self._output(codes, given, output_type, return_uncertainty, select_by_reprojection, beam)
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def encode_views(self, views: Mapping[str, Any] | Sequence[Mapping[str, Any]] | GivenViews) -> torch.Tensor:
        """Context of the transformer: embeddings of the views' codes through the effective codebook.

        Args:
            views: as in a call, or already read.

        Returns:
            `(subjects, V, context_tokens, context_dim)`, V being the views that at least one subject has, in the order
            of the transformer's; 0 where a subject lacks one.
        """
        given = views if isinstance(views, GivenViews) else read_views(views, self.transformer, self.view_processor)
        contexts = []
        for pixel_values, present in zip(given.pixel_values, given.present.T, strict=True):
            pixel_values = pixel_values.to(self._execution_device, self.view_tokenizer.dtype)
            vectors = self.view_tokenizer.embed_codes(self.view_tokenizer.encode(pixel_values).codes)
            context = vectors.new_zeros(given.num_subjects, *vectors.shape[1:])
            context[present.to(context.device)] = vectors
            contexts.append(context)
        return torch.stack(contexts, dim=1).to(self.transformer.dtype)

    def decode_codes(self, codes: torch.Tensor, output_type: str = "pt") -> Any:
        """Volumes of codes `(B, *code_grid)`, in the form that `output_type` names."""
        if output_type == "latent":
            return codes
        return self._postprocess(self.volume_tokenizer.decode(codes).sample, output_type)

    def _postprocess(self, pixel_values: torch.Tensor, output_type: str) -> Any:
        if output_type == "pt":
            return pixel_values
        return self.volume_processor.postprocess(pixel_values, output_type=output_type)

    def _labels(self, class_labels: Any, num_subjects: int, num_volumes_per_prompt: int) -> torch.Tensor | None:
        """`(B,)` int64 class of each volume, -1 for none; nothing for a model without classes."""
        numbers = prompt_labels(self.transformer, class_labels, num_subjects, f"{num_subjects} subjects")
        if self.transformer.config.num_classes is None:
            return None
        check_label_dropout(self.transformer, min(numbers) < 0)
        labels = torch.tensor(numbers, dtype=torch.int64, device=self._execution_device)
        return labels.repeat_interleave(num_volumes_per_prompt)

    def _predictor(self, given: GivenViews, labels: torch.Tensor | None, num_volumes_per_prompt: int) -> PredictLogits:
        """Function from codes and places to logits, guided where asked for."""
        transformer, label_arguments = self.transformer, {} if labels is None else {"class_labels": labels}
        view_arguments = self._view_arguments(given, num_volumes_per_prompt)

        def predict(codes: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
            with_views = transformer(codes, **view_arguments, **label_arguments, positions=places).sample
            if self.guidance_scale == 1:
                return with_views
            check_guidance_scale(self.guidance_scale)
            without = transformer(codes, **label_arguments, positions=places).sample
            return guided_logits(with_views, without, self.guidance_scale)

        return predict

    def _view_arguments(self, given: GivenViews, num_volumes_per_prompt: int) -> dict[str, Any]:
        """The transformer's arguments for the views of every volume, which no step changes."""
        if not given.names:
            return {}

        def for_each_volume(of_subjects: torch.Tensor) -> torch.Tensor:
            return of_subjects.repeat_interleave(num_volumes_per_prompt, dim=0)

        context = self.encode_views(given)
        ids = torch.tensor([self.transformer.view_names.index(name) for name in given.names], device=context.device)
        view_ids = ids.expand(context.shape[:2])
        present = None if bool(given.present.all()) else given.present.to(context.device)
        view_mask = None if present is None else for_each_volume(present)
        if self.transformer.config.context_attention == "prefix":
            of_subjects = self.transformer.encode_context(context, view_ids, present)
            key_values = [(for_each_volume(key), for_each_volume(value)) for key, value in of_subjects]
            return {"context_key_values": key_values, "view_mask": view_mask}
        return {"context": for_each_volume(context), "view_ids": for_each_volume(view_ids), "view_mask": view_mask}

    def _output(
        self,
        codes: torch.Tensor,
        given: GivenViews,
        output_type: str,
        return_uncertainty: bool,
        select_by_reprojection: bool,
        beam: BeamGeometry | None,
    ) -> ViewsToVolumePipelineOutput:
        """Volumes of the codes, all or the selected ones, and what was asked for beside them."""
        if output_type == "latent" and not select_by_reprojection:
            return ViewsToVolumePipelineOutput(codes, codes)
        pixel_values = self.decode_codes(codes)
        mean, std = self._uncertainty(pixel_values, given, output_type) if return_uncertainty else (None, None)
        errors = None
        if select_by_reprojection:
            volumes, spacing = self._in_hu(pixel_values).to(pixel_values.device), self.volume_processor.spacing
            errors = reprojection_errors(volumes, spacing, given, self.view_processor.output_range, beam)
            best = torch.arange(0, len(codes), errors.shape[1], device=codes.device) + errors.argmin(dim=1)
            codes, pixel_values = codes[best], pixel_values[best]
        volumes = codes if output_type == "latent" else self._postprocess(pixel_values, output_type)
        return ViewsToVolumePipelineOutput(volumes, codes, mean, std, errors)

    def _in_hu(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, D, H, W)` float32 on the CPU."""
        return torch.from_numpy(self.volume_processor.postprocess(pixel_values, output_type="hu"))

    def _uncertainty(self, pixel_values: torch.Tensor, given: GivenViews, output_type: str) -> tuple[Any, Any]:
        """Mean and standard deviation over the volumes of each subject, in the form that `output_type` names."""
        volumes = pixel_values if output_type == "pt" else self._in_hu(pixel_values)
        by_subject = volumes.float().unflatten(0, (given.num_subjects, -1))
        mean, std = by_subject.mean(dim=1), by_subject.std(dim=1)
        if output_type == "pt":
            return mean.to(volumes.dtype), std.to(volumes.dtype)
        if output_type == "hu":
            return mean.numpy(), std.numpy()
        # not through the processor, which would clip a deviation to the window and round both to whole HU
        return self._images(mean), self._images(std)

    def _images(self, volumes: torch.Tensor) -> list[Any]:
        """Float32 NIfTI images of `(B, D, H, W)` on the grid of the generated volumes."""
        images = []
        for volume in volumes:
            depth, height, width = volume.shape
            affine = grid_affine((depth, height, width), self.volume_processor.spacing)
            images.append(import_nibabel().Nifti1Image(to_array_axes(volume), affine))
            images[-1].header.set_xyzt_units("mm")
        return images

    def _check_arguments(
        self,
        num_volumes_per_prompt: int,
        guidance_scale: float,
        output_type: str,
        return_uncertainty: bool,
        select_by_reprojection: bool,
    ) -> None:
        for reason, asked in (
            ("output_type='nifti'", output_type == "nifti"),
            ("select_by_reprojection=True", select_by_reprojection),
        ):
            if asked and self.volume_processor.spacing is None:
                raise ValueError(
                    f"{reason} needs the voxel size, and volume_processor.spacing is None; set it to mm along "
                    "D, H, W or choose otherwise"
                )
        check_count("num_volumes_per_prompt", num_volumes_per_prompt)
        check_guidance_scale(guidance_scale)
        if guidance_scale != 1 and not self.transformer.config.context_dropout:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a model that knows volumes without views, and this one was "
                "trained with context_dropout=0; leave it at 1, or train with context_dropout"
            )
        if return_uncertainty and (output_type == "latent" or num_volumes_per_prompt < 2):
            raise ValueError(
                "return_uncertainty=True needs at least 2 volumes per subject and another output_type than 'latent'; "
                f"got num_volumes_per_prompt={num_volumes_per_prompt} and output_type={output_type!r}"
            )


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
            "volume_tokenizer's spatial_dims and 3": (volume_tokenizer.config.spatial_dims, 3),
            "view_tokenizer's spatial_dims and 2": (view_tokenizer.config.spatial_dims, 2),
        }
    )
