"""What the pipelines over codes share: the codes they start from, the sampling loop and its checks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import AmusedScheduler, DiffusionPipeline

from ..models import CodeTransformer, VQTokenizer
from ..scalars import is_whole
from ..schedulers import AbsorbingScheduler
from ..sharing import PushedWithCard

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
PredictLogits = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class CodeSamplingPipeline(PushedWithCard, DiffusionPipeline):
    """Base of the pipelines whose `transformer` predicts masked codes and whose `scheduler` settles them step by step.

    A subclass registers both components and calls `sample_codes` from its `__call__`.
    """

    _callback_tensor_inputs = ("latents",)
    _guidance_scale = 1.0
    _num_timesteps = 0
    _num_network_evaluations = 0

    @property
    def guidance_scale(self) -> float:
        """Guidance of the last call, or of the step to come: a callback may set `_guidance_scale` anew."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def num_network_evaluations(self) -> int:
        """Steps of the last call for which the transformer was asked; the others changed no code of the batch."""
        return self._num_network_evaluations

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
        predict_logits: PredictLogits,
        num_inference_steps: int,
        step_arguments: dict[str, Any],
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Iterable[str] | None = None,
    ) -> torch.Tensor:
        """Settles all masked codes; with any scheduler a code that is not masked stays, unless the callback changes it.

        A scheduler with `select_positions` is asked first what a step will settle, and the transformer only if that is
        something, and only for the logits of these positions: they depend on the codes alone.

        Args:
            codes: `(B, N)` int64 codes to start from.
            predict_logits: turns codes `(B, N)` and places `(B, M)` int64 into logits `(B, M, K)`, and codes and `None`
                into `(B, N, K)`.
            num_inference_steps: steps, at least 1, and at most as many calls of `predict_logits`.
            step_arguments: further arguments of `scheduler.step`, from `_step_arguments`.
            callback_on_step_end: as in `__call__`.
            callback_on_step_end_tensor_inputs: as in `__call__`.

        Returns:
            `(B, *code_grid)` codes without a mask.

        Raises:
            ValueError: if a causal transformer would not get its codes one by one in its own order.
        """
        self._check_causal(num_inference_steps)
        self._set_timesteps(num_inference_steps)
        given = callback_on_step_end_tensor_inputs
        names = self._callback_tensor_inputs if given is None else tuple(given)
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                codes = self._settle(codes, timestep, predict_logits, step_arguments)
                if callback_on_step_end is not None:
                    tensors = {name: value for name, value in {"latents": codes}.items() if name in names}
                    returned = callback_on_step_end(self, step, timestep, tensors)
                    self._check_returned(returned)
                    codes = returned.get("latents", codes)
                progress_bar.update()
        return codes.view(-1, *self.transformer.config.code_grid)

    def _set_timesteps(self, num_inference_steps: int) -> None:
        chooses = hasattr(self.scheduler, "select_positions")
        grid = {"code_grid": self.transformer.config.code_grid} if chooses else {}
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device, **grid)
        self._num_timesteps = len(self.scheduler.timesteps)
        self._num_network_evaluations = 0

    def _settle(
        self,
        codes: torch.Tensor,
        timestep: torch.Tensor,
        predict_logits: PredictLogits,
        step_arguments: dict[str, Any],
    ) -> torch.Tensor:
        """Codes after one step."""
        masked = codes == self.transformer.mask_token_id
        if not hasattr(self.scheduler, "select_positions"):
            self._num_network_evaluations += 1
            stepped = self.scheduler.step(predict_logits(codes, None), timestep, codes, **step_arguments).prev_sample
            # AmusedScheduler masks a code again in a row that has no mask left.
            return torch.where(masked, stepped, codes)
        positions = self.scheduler.select_positions(codes, timestep, step_arguments["generator"])
        places, is_real = _padded_places(masked if positions is None else masked & positions)
        logits = None
        if places.shape[1]:
            logits = predict_logits(codes, places)[is_real]
            self._num_network_evaluations += 1
        # Without logits the step still draws: a seed gives the same codes, however many steps go without the network.
        stepped = self.scheduler.step(logits, timestep, codes, **step_arguments, positions=positions).prev_sample
        return torch.where(masked, stepped, codes)

    def _step_arguments(self, generator: Any, temperature: float, top_p: float) -> dict[str, Any]:
        if not isinstance(self.scheduler, AmusedScheduler):
            return {"generator": generator, "temperature": temperature, "top_p": top_p}
        if isinstance(generator, list):
            raise ValueError("AmusedScheduler draws for the whole batch at once: give one generator instead of a list")
        return {"generator": generator}

    def _check_causal(self, num_inference_steps: int) -> None:
        """A causal transformer knows a code's distribution only once all codes before it are settled."""
        if not self.transformer.config.causal:
            return
        count = math.prod(self.transformer.config.code_grid)
        wanted, given = (
            list(config.get("code_order") or range(count))
            for config in (self.transformer.config, self.scheduler.config)
        )
        names = {name: self.scheduler.config.get(name) for name in ("sampling", "schedule")}
        if names != {"sampling": "sequential", "schedule": "linear"} or given != wanted or num_inference_steps < count:
            raise ValueError(
                "the transformer is causal, one code after another: it needs an AbsorbingScheduler with "
                f"sampling='sequential', schedule='linear' and the transformer's code_order, and at least {count} "
                f"num_inference_steps; got {names}, {'the same' if given == wanted else 'another'} order and "
                f"{num_inference_steps} steps"
            )

    def _check_sampling(
        self, num_inference_steps: int, output_type: str, output_types: Iterable[str], callback_inputs: list[str] | None
    ) -> None:
        check_count("num_inference_steps", num_inference_steps)
        if output_type not in output_types:
            raise ValueError(f"output_type={output_type!r} is unknown; choose one of {tuple(output_types)}")
        unknown = sorted(set(callback_inputs or ()) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs {unknown} are unknown; choose from {self._callback_tensor_inputs}"
            )

    def _check_returned(self, tensors: dict[str, Any]) -> None:
        """Refuses what would be lost, such as codes under another name."""
        unknown = sorted(set(tensors) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"callback_on_step_end returned {unknown}, which change nothing; return {self._callback_tensor_inputs}"
            )


def _padded_places(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rows `(B, N)` of booleans are true: `(B, M)` int64 in rising order, M of the row with the most, and which
    of them are real: the rows with fewer are filled up."""
    counts = chosen.sum(dim=1, keepdim=True)
    longest = int(counts.max())
    places = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :longest]
    return places, torch.arange(longest, device=chosen.device) < counts


def check_count(name: str, value: object) -> None:
    """Raises ValueError, naming the argument, unless the value is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")


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
