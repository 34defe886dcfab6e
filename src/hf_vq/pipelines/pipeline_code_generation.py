"""Pipeline that generates images from codes, without a condition or from a class label."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from ..models import CodeTransformer, VQTokenizer
from ..schedulers import AbsorbingScheduler
from .code_sampling import (
    CodeSamplingPipeline,
    PredictLogits,
    StepCallback,
    check_belong_together,
    check_count,
    shared_pairs,
)
from .conditions import check_guidance_scale, check_label_dropout, class_numbers, guided_logits, prompt_labels
from .pipeline_output import CodeGenerationPipelineOutput

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
VOLUME_OUTPUT_TYPES = ("pt", "latent")


class CodeGenerationPipeline(CodeSamplingPipeline):
    r"""Generates images by absorbing diffusion over the codes of a VQ tokenizer (Bond-Taylor et al., 2022).

    With a class-conditional transformer images are drawn for class labels, on wish with classifier-free guidance (Ho &
    Salimans, 2022) of the logits: \(l_\text{none} + s\,(l_\text{class} - l_\text{none})\), s being `guidance_scale`.

    Args:
        tokenizer: `VQTokenizer` of images whose pixels lie in [-1, 1]; one of volumes serves `output_type="pt"`.
        transformer: `CodeTransformer` over the tokenizer's codes, without views.
        scheduler: `AbsorbingScheduler`; diffusers' `AmusedScheduler` (confidence order, MaskGIT) works in its place.

    Example:
        >>> pipe = CodeGenerationPipeline.from_pretrained("fashion-mnist/pipeline")
        >>> pipe(["Sneaker", "Bag"], guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images[0].show()
    """

    model_cpu_offload_seq = "transformer->tokenizer"

    def __init__(self, tokenizer: VQTokenizer, transformer: CodeTransformer, scheduler: AbsorbingScheduler) -> None:
        super().__init__()
        _check_fit(tokenizer, transformer, scheduler)
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=tokenizer.config.downsampling_factor)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str | None] | torch.Tensor | None = None,
        batch_size: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 16,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> CodeGenerationPipelineOutput | tuple[Any, torch.Tensor]:
        """Generates images.

        Args:
            class_labels: number or name of a class, or a list of them, one prompt each; -1 or `None` for no label.
            batch_size: number of prompts: by default one without labels and one for each label; a single label serves
                as many as are asked for.
            num_images_per_prompt: images for each prompt, at least 1.
            num_inference_steps: steps, at least 1; each is at most one network evaluation, of twice the batch with
                guidance.
            guidance_scale: 1 is the model as it is, more keeps closer to the class, 0 ignores it. Other values than 1
                need `class_labels` and a model trained with `label_dropout`.
            temperature: divides the logits; 0 takes the likeliest codes. (Not used by other schedulers.)
            top_p: draws from the smallest set of codes holding this probability. (Not used by other schedulers.)
            generator: source of all randomness; one, or a list with one per image.
            latents: `(B, *code_grid)` int64 codes to start from, `transformer.mask_token_id` where to generate.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`; see `CodeGenerationPipelineOutput`.
            return_dict: `False` for the tuple `(images, codes)`.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": codes})` after each step;
                returns such a dict, perhaps with other codes `(B, N)`. It may change `pipeline._guidance_scale`.
            callback_on_step_end_tensor_inputs: which tensors the callback gets, a subset of `["latents"]`, which is the
                default.

        Returns:
            `CodeGenerationPipelineOutput`, images of a prompt one after another.

        Raises:
            ValueError: if a label is unknown or not of use to the model, or an argument is out of range.
        """
        self._check_sampling(num_inference_steps, output_type, self._output_types, callback_on_step_end_tensor_inputs)
        labels = self._prompts(class_labels, batch_size, num_images_per_prompt)
        self._guidance_scale = guidance_scale
        self._check_guidance(labels)
        codes = self.prepare_latents(len(labels), latents)
        codes = self.sample_codes(
            codes,
            self._predictor(labels),
            num_inference_steps,
            self._step_arguments(generator, temperature, top_p),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        images = self.decode_codes(codes, output_type)
        self.maybe_free_model_hooks()
        return CodeGenerationPipelineOutput(images, codes) if return_dict else (images, codes)

    def label_ids(self, class_labels: Sequence[int | str | None]) -> list[int]:
        """Numbers of classes given by number or name; -1 and `None`, for no label, give -1.

        Raises:
            ValueError: if there is no such class.
        """
        return class_numbers(self.transformer, class_labels)

    def decode_codes(self, codes: torch.Tensor, output_type: str = "pt") -> Any:
        """Images of codes `(B, *code_grid)`, in the form that `output_type` names."""
        if output_type == "latent":
            return codes
        return self.image_processor.postprocess(self.tokenizer.decode(codes).sample, output_type=output_type)

    @property
    def _output_types(self) -> tuple[str, ...]:
        return OUTPUT_TYPES if self.tokenizer.config.spatial_dims == 2 else VOLUME_OUTPUT_TYPES

    def _prompts(self, class_labels: Any, batch_size: int | None, num_images_per_prompt: int) -> torch.Tensor:
        """`(B,)` int64 label of each image, -1 for none."""
        for name, count in (("batch_size", batch_size), ("num_images_per_prompt", num_images_per_prompt)):
            if count is not None or name != "batch_size":
                check_count(name, count)
        numbers = prompt_labels(self.transformer, class_labels, batch_size, f"batch_size={batch_size} prompts")
        labels = torch.tensor(numbers, dtype=torch.int64, device=self._execution_device)
        return labels.repeat_interleave(num_images_per_prompt)

    def _check_guidance(self, labels: torch.Tensor) -> None:
        unlabelled, is_guided = bool((labels < 0).any()), self.guidance_scale != 1
        check_guidance_scale(self.guidance_scale)
        if is_guided and unlabelled:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} needs a class label for every image; give class_labels"
            )
        check_label_dropout(self.transformer, is_guided or unlabelled)

    def _predictor(self, labels: torch.Tensor) -> PredictLogits:
        """Function from codes and places to logits, guided where asked for."""
        transformer = self.transformer
        both = torch.cat((labels, torch.full_like(labels, -1)))

        def predict(codes: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
            self._check_guidance(labels)
            if not transformer.config.num_classes:
                return transformer(codes, positions=places).sample
            if self.guidance_scale == 1:
                return transformer(codes, class_labels=labels, positions=places).sample
            twice = None if places is None else places.repeat(2, 1)
            logits = transformer(codes.repeat(2, 1), class_labels=both, positions=twice).sample
            with_label, without = logits.chunk(2)
            return guided_logits(with_label, without, self.guidance_scale)

        return predict


def _check_fit(tokenizer: VQTokenizer, transformer: CodeTransformer, scheduler: AbsorbingScheduler) -> None:
    check_belong_together(
        {
            **shared_pairs("tokenizer", tokenizer, transformer, scheduler),
            "transformer.context_dim and None, for a model without views": (transformer.config.context_dim, None),
        }
    )
