"""What the pipelines over codes share: the codes they start from, the sampling loop and its checks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import AmusedScheduler, DiffusionPipeline

from ..models import CodeTransformer, VQTokenizer
from ..schedulers import AbsorbingScheduler

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class CodeSamplingPipeline(DiffusionPipeline):
    """Base of the pipelines whose `transformer` predicts masked codes and whose `scheduler` settles them step by step.

    A subclass registers both components and calls `sample_codes` from its `__call__`.
    """

    _callback_tensor_inputs = ("codes",)
    _num_timesteps = 0

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    def prepare_latents(self, batch_size: int, latents: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, N)` int64 codes to start from: all masks, or the given ones, checked."""
        grid = tuple(self.transformer.config.code_grid)
        mask = self.transformer.mask_token_id
        if latents is None:
            return torch.full((batch_size, *grid), mask, dtype=torch.int64, device=self._execution_device).flatten(1)
        if latents.shape != (batch_size, *grid) or latents.dtype != torch.int64:
            raise ValueError(
                f"latents must be int64 codes of shape {(batch_size, *grid)}; got {latents.dtype} "
                f"{tuple(latents.shape)}"
            )
        if latents.min() < 0 or latents.max() > mask:
            raise ValueError(
                f"latents must lie in [0, {mask}], {mask} being the mask; got {int(latents.min())} to "
                f"{int(latents.max())}"
            )
        return latents.flatten(1).to(self._execution_device)

    def sample_codes(
        self,
        codes: torch.Tensor,
        predict_logits: Callable[[torch.Tensor], torch.Tensor],
        num_inference_steps: int,
        step_arguments: dict[str, Any],
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Iterable[str] | None = None,
    ) -> torch.Tensor:
        """Settles all masked codes; with any scheduler a code that is not masked stays, unless the callback changes it.

        Args:
            codes: `(B, N)` int64 codes to start from.
            predict_logits: turns codes `(B, N)` into logits `(B, N, K)`.
            num_inference_steps: calls of `predict_logits`, at least 1.
            step_arguments: further arguments of `scheduler.step`, from `_step_arguments`.
            callback_on_step_end: as in `__call__`.
            callback_on_step_end_tensor_inputs: as in `__call__`.

        Returns:
            `(B, *code_grid)` codes without a mask.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        self._num_timesteps = len(self.scheduler.timesteps)
        mask, given = self.transformer.mask_token_id, callback_on_step_end_tensor_inputs
        names = self._callback_tensor_inputs if given is None else tuple(given)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                logits = predict_logits(codes)
                stepped = self.scheduler.step(logits, timestep, codes, **step_arguments).prev_sample
                # AmusedScheduler masks a code again in a row that has no mask left.
                codes = torch.where(codes == mask, stepped, codes)
                if callback_on_step_end is not None:
                    tensors = {name: value for name, value in {"codes": codes}.items() if name in names}
                    codes = callback_on_step_end(self, step, timestep, tensors).pop("codes", codes)
                progress_bar.update()
        return codes.view(-1, *self.transformer.config.code_grid)

    def _step_arguments(self, generator: Any, temperature: float, top_p: float) -> dict[str, Any]:
        if not isinstance(self.scheduler, AmusedScheduler):
            return {"generator": generator, "temperature": temperature, "top_p": top_p}
        if isinstance(generator, list):
            raise ValueError("AmusedScheduler draws for the whole batch at once: give one generator instead of a list")
        return {"generator": generator}

    def _check_sampling(
        self, num_inference_steps: int, output_type: str, output_types: Iterable[str], callback_inputs: list[str] | None
    ) -> None:
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {num_inference_steps}")
        if output_type not in output_types:
            raise ValueError(f"output_type={output_type!r} is unknown; choose one of {tuple(output_types)}")
        unknown = sorted(set(callback_inputs or ()) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {unknown} are unknown; choose from {self._callback_tensor_inputs}"
            )


def check_belong_together(pairs: dict[str, tuple[Any, Any]]) -> None:
    """Refuses components that do not fit.

    Args:
        pairs: what must be equal, by a name for both values.

    Raises:
        ValueError: naming the first pair that differs.
    """
    for names, (left, right) in pairs.items():
        if left != right:
            raise ValueError(f"these components do not belong together: {names} must be equal; got {left} and {right}")


def shared_pairs(
    name: str, tokenizer: VQTokenizer, transformer: CodeTransformer, scheduler: AbsorbingScheduler
) -> dict[str, tuple[Any, Any]]:
    """What must be equal in every pipeline over the codes of one tokenizer, which it calls `name`."""
    quantizer = tokenizer.config.quantizer_config
    return {
        "scheduler.mask_token_id and transformer.mask_token_id": (
            scheduler.config.mask_token_id,
            transformer.mask_token_id,
        ),
        f"transformer.num_codes and {name}'s codebook_size": (transformer.config.num_codes, quantizer.codebook_size),
        f"codebooks of {name} and 1": (getattr(quantizer, "num_codebooks", 1), 1),
        f"sides of transformer.code_grid and {name}'s spatial_dims": (
            len(transformer.config.code_grid),
            tokenizer.config.spatial_dims,
        ),
    }
