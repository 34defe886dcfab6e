"""Absorbing-state (masking) discrete diffusion scheduler."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

SCHEDULES = ("linear", "cosine")
SAMPLINGS = ("ancestral", "exact_count")

Generator = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class AbsorbingSchedulerOutput(BaseOutput):
    """What `AbsorbingScheduler.step` returns.

    Args:
        prev_sample: `(B, N)` int64, the codes at the next, smaller timestep; input of the next model call.
        pred_original_sample: `(B, N)` int64, `sample` with every mask filled by the likeliest code, for previews.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class AbsorbingScheduler(SchedulerMixin, ConfigMixin):
    r"""Absorbing discrete diffusion: codes turn into the mask one by one, and are sampled back in the other direction.

    Timesteps are mask rates t in (0, 1], decreasing. Forward process: \(q(x_t = \text{mask} | x_0) = t\) independently
    for each position (Austin et al., 2021, D3PM; Bond-Taylor et al., 2022, eq. 6). Reverse, from t to s < t: a masked
    position is unmasked with probability \((t - s) / t\), its code drawn from the model's distribution; a settled code
    never changes.

    Args:
        mask_token_id (`int`): id of the mask, the codebook size.
        schedule (`str`): `"linear"` lets t fall evenly over the steps, `"cosine"` as \(\sin(\pi/2 \cdot i/S)\), slowly
            at first.
        sampling (`str`): `"ancestral"` unmasks each position by a coin, `"exact_count"` the expected number of
            positions in uniformly random order, so that no step is wasted.
    """

    order = 1

    @register_to_config
    def __init__(self, mask_token_id: int, schedule: str = "linear", sampling: str = "exact_count") -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule!r} is unknown; choose one of {SCHEDULES}")
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling={sampling!r} is unknown; choose one of {SAMPLINGS}")
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.float64)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Sets `timesteps`, `num_inference_steps` mask rates from 1 downwards (float64; the end, 0, is not listed).

        Raises:
            ValueError: if `num_inference_steps` is below 1.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {num_inference_steps}")
        fractions = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64, device=device) / num_inference_steps
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.sin(fractions * math.pi / 2) if self.config.schedule == "cosine" else fractions

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """The sample itself: codes are not scaled."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, timesteps: torch.Tensor, generator: Generator = None
    ) -> torch.Tensor:
        """Forward process: masks codes at the rate t.

        Args:
            original_samples: `(B, ...)` int64 codes.
            timesteps: `(B,)` or scalar mask rates t in [0, 1].
            generator: source of randomness, one or a list of one per sample.

        Returns:
            The codes with each replaced by `mask_token_id` with probability t: with `sampling="ancestral"`
                independently,
            otherwise exactly `round(t * N)` of them, and at least one unless t is 0.

        Raises:
            ValueError: if a rate is outside [0, 1].
        """
        flat = original_samples.flatten(1)
        rates = torch.as_tensor(timesteps, dtype=torch.float64, device=flat.device).expand(len(flat))
        if not bool(((rates >= 0) & (rates <= 1)).all()):
            raise ValueError(f"timesteps are mask rates in [0, 1]; got {rates.tolist()}")
        draws = _uniform(flat.shape, generator, flat.device)
        if self.config.sampling == "exact_count":
            counts = (rates * flat.shape[1]).round().clamp(min=1).masked_fill(rates == 0, 0)
            masked = _ranks(draws) < counts[:, None]
        else:
            masked = draws < rates[:, None]
        return torch.where(masked, self.config.mask_token_id, flat).view_as(original_samples)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: Generator = None,
        return_dict: bool = True,
    ) -> AbsorbingSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        r"""One reverse step from `timestep` t to the next timestep s (0 after the last): unmasks with probability (t -
        s) / t.

        Args:
            model_output: `(B, N, K)` logits.
            timestep: the current entry of `timesteps`.
            sample: `(B, N)` int64 codes with `mask_token_id` where still masked.
            temperature: divides the logits; 0 takes the likeliest code.
            top_p: draws from the smallest set of codes that holds this much probability, in (0, 1].
            generator: source of randomness, one or a list of one per sample.
            return_dict: `False` for a plain tuple.

        Returns:
            `AbsorbingSchedulerOutput`; after the last step no mask is left.

        Raises:
            ValueError: if `temperature`, `top_p`, `timestep` or a shape is out of range.
        """
        self._check_step(model_output, sample, temperature, top_p)
        current, following = self._rates(timestep)
        masked = sample == self.config.mask_token_id
        reveal = self._positions_to_reveal(masked, current, following, generator)
        draws = _uniform(sample.shape, generator, sample.device)
        prev_sample = sample.clone()
        prev_sample[reveal] = _draw_codes(model_output[reveal], draws[reveal], temperature, top_p)
        if not return_dict:
            return prev_sample, self._fill(model_output, sample, masked)
        return AbsorbingSchedulerOutput(prev_sample, self._fill(model_output, sample, masked))

    @staticmethod
    def _fill(model_output: torch.Tensor, sample: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        return torch.where(masked, model_output.argmax(dim=-1), sample)

    def _rates(self, timestep: torch.Tensor | float) -> tuple[float, float]:
        index = (self.timesteps - float(timestep)).abs().argmin() if len(self.timesteps) else None
        if index is None or abs(float(self.timesteps[index]) - float(timestep)) > 1e-6:
            raise ValueError(
                f"timestep={float(timestep)} is not one of this scheduler's timesteps; call set_timesteps and "
                "pass its entries"
            )
        last = int(index) + 1 == len(self.timesteps)
        return float(self.timesteps[index]), 0.0 if last else float(self.timesteps[index + 1])

    def _positions_to_reveal(
        self, masked: torch.Tensor, current: float, following: float, generator: Generator
    ) -> torch.Tensor:
        if following == 0:
            return masked
        draws = _uniform(masked.shape, generator, masked.device)
        if self.config.sampling == "ancestral":
            return masked & (draws < (current - following) / current)
        remaining = round(following * masked.shape[1])
        excess = masked.sum(dim=1, keepdim=True) - remaining
        # Settled positions go to the end of the random order, so the first `excess` are masked ones.
        return masked & (_ranks(draws.masked_fill(~masked, 2.0)) < excess)

    def _check_step(self, model_output: torch.Tensor, sample: torch.Tensor, temperature: float, top_p: float) -> None:
        if model_output.ndim != 3 or sample.shape != model_output.shape[:2]:
            raise ValueError(
                f"model_output must be (B, N, K) and sample (B, N); got {tuple(model_output.shape)} and "
                f"{tuple(sample.shape)}"
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0; got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1]; got {top_p}")


def _uniform(shape: torch.Size, generator: Generator, device: torch.device) -> torch.Tensor:
    """Uniform float64 draws in [0, 1), one generator for all rows or one for each."""
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"got {len(generator)} generators for {shape[0]} samples; give one, or one per sample")
        return torch.cat([_uniform(torch.Size((1, *shape[1:])), each, device) for each in generator])
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each entry within its row, 0 for the smallest."""
    return values.argsort(dim=1).argsort(dim=1)


def _draw_codes(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Inverse-CDF draws from `(M, K)` logits with `(M,)` uniforms, in float64: float32 would round rare codes away."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(dim=-1)
    targets = draws[:, None] * cumulative[:, -1:]
    # right=True skips codes of zero probability; the last code with any bounds what rounding might push beyond it.
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).minimum(last)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
