"""Absorbing-state (masking) discrete diffusion scheduler."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ..scalars import is_whole
from ..sharing import PushedWithCard
from .checks import check_config, check_draw, check_logits
from .halton import shifted_halton_ranks

MAX_INFERENCE_STEPS = 100_000
"""Steps beyond any use: no more of them than there are codes change one, and each is looked up among all."""

Generator = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class AbsorbingSchedulerOutput(BaseOutput):
    """What `AbsorbingScheduler.step` returns.

    Args:
        prev_sample: `(B, N)` int64, the codes at the next, smaller timestep; input of the next model call.
        pred_original_sample: `(B, N)` int64, `sample` with every mask filled by the likeliest code, for previews;
            `None` where the step was made without the logits of all positions.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class AbsorbingScheduler(PushedWithCard, SchedulerMixin, ConfigMixin):
    r"""Absorbing discrete diffusion: codes turn into the mask one by one, and are sampled back in the other direction.

    Timesteps are mask rates t in (0, 1], decreasing. Forward process: \(q(x_t = \text{mask} | x_0) = t\) independently
    for each position (Austin et al., 2021, D3PM; Bond-Taylor et al., 2022, eq. 6). Reverse, from t to s < t: some
    masked positions are settled, their codes drawn from the model's distribution; a settled code never changes.
    `sampling` says which ones. `"ancestral"` tosses a coin of probability \((t - s) / t\) for each; the others settle
    as many as leave `round(s * N)` masks:

    - `"exact_count"`: in uniformly random order. With at least N linear steps one position at a time, which is the
      first-hitting sampler (Zheng et al., 2024) of a model without a timestep.
    - `"halton"`: in the order of a Halton sequence in the code grid (Besnier et al., 2025), moved by a random shift for
      each sample, so that positions settled in one step lie far apart.
    - `"sequential"`: in one fixed order, that of a causal model.
    - `"confidence"`: draws codes for all masked positions and keeps those of the highest
      \(\log p + \tau s\, g\) (MaskGIT, Chang et al., 2022), p being the probability of the drawn code, \(\tau\)
      `choice_temperature` and g standard Gumbel noise.

    With exact conditionals, one position at a time and an order that does not look at the codes, samples follow the
    joint distribution exactly; with `"ancestral"` in the limit of many steps, with `"confidence"` not.

    Args:
        mask_token_id (`int`): id of the mask, the codebook size.
        schedule (`str`): `"linear"` lets t fall evenly over the steps, `"cosine"` as \(\sin(\pi/2 \cdot i/S)\), slowly
            at first.
        sampling (`str`): `"ancestral"`, `"exact_count"`, `"confidence"`, `"halton"` or `"sequential"`; see above.
        masking (`str`, *optional*): what `add_noise` masks: `"random"`, each position by a coin; `"exact_count"`,
            `round(t * N)` of them. By default `"random"` with `sampling="ancestral"` and `"exact_count"` otherwise.
        choice_temperature (`float`): weight of the noise of `sampling="confidence"`, at least 0.
        code_order (`list[int]`, *optional*): order of `sampling="sequential"`, a permutation of the N positions; by
            default raster order, the last side of the code grid fastest.
    """

    order = 1
    # What diffusers multiplies the start of a generation by: masks stay masks.
    init_noise_sigma = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        schedule: str = "linear",
        sampling: str = "exact_count",
        masking: str | None = None,
        choice_temperature: float = 4.5,
        code_order: Sequence[int] | None = None,
    ) -> None:
        check_config(mask_token_id, schedule, sampling, masking, choice_temperature, code_order)
        self._keep_arguments_given_by_position()
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.float64)
        self._code_grid: tuple[int, ...] | None = None
        self._halton_ranks: torch.Tensor | None = None

    def _keep_arguments_given_by_position(self) -> None:
        """diffusers takes them for defaults, which `from_config` leaves out."""
        if "_use_default_values" in self.config:
            defaults = inspect.signature(type(self)).parameters
            left_out = [name for name in self.config._use_default_values if self.config[name] == defaults[name].default]
            self.register_to_config(_use_default_values=left_out)

    @classmethod
    def _get_compatibles(cls) -> list[type[SchedulerMixin]]:
        # The base class looks for classes in diffusers alone and would miss even this one.
        return [cls, *(each for each in super()._get_compatibles() if each is not cls)]

    @property
    def masking_rule(self) -> str:
        """What `add_noise` masks, the default resolved."""
        default = "random" if self.config.sampling == "ancestral" else "exact_count"
        return self.config.masking or default

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        code_grid: Sequence[int] | None = None,
    ) -> None:
        """Sets `timesteps`, `num_inference_steps` mask rates from 1 downwards (float64; the end, 0, is not listed).

        Args:
            num_inference_steps: steps, 1 to `MAX_INFERENCE_STEPS`.
            device: where the timesteps are kept.
            code_grid: sides of the code grid, one to three, which `sampling="halton"` needs; the pipelines give it.

        Raises:
            ValueError: if `num_inference_steps` is no whole number or out of range.
        """
        whole = is_whole(num_inference_steps)
        if whole and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {num_inference_steps}")
        if not whole or num_inference_steps > MAX_INFERENCE_STEPS:
            raise ValueError(
                f"num_inference_steps must be a whole number from 1 to {MAX_INFERENCE_STEPS}; got "
                f"{num_inference_steps!r}"
            )
        fractions = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64, device=device) / num_inference_steps
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.sin(fractions * math.pi / 2) if self.config.schedule == "cosine" else fractions
        self._code_grid = None if code_grid is None else tuple(code_grid)
        self._halton_ranks = None

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
            The codes with some replaced by `mask_token_id`: by the `masking_rule` `"random"` each with probability t,
            independently; otherwise exactly `round(t * N)` of them, and at least one unless t is 0.

        Raises:
            ValueError: if a rate is outside [0, 1].
        """
        flat = original_samples.flatten(1)
        rates = torch.as_tensor(timesteps, dtype=torch.float64, device=flat.device).expand(len(flat))
        if not bool(((rates >= 0) & (rates <= 1)).all()):
            raise ValueError(f"timesteps are mask rates in [0, 1]; got {rates.tolist()}")
        draws = _uniform(flat.shape, generator, flat.device)
        if self.masking_rule == "exact_count":
            counts = (rates * flat.shape[1]).round().clamp(min=1).masked_fill(rates == 0, 0)
            masked = _ranks(draws) < counts[:, None]
        else:
            masked = draws < rates[:, None]
        return torch.where(masked, self.config.mask_token_id, flat).view_as(original_samples)

    def select_positions(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, generator: Generator = None
    ) -> torch.Tensor | None:
        """Draws which masked positions the step from `timestep` settles, before the model is asked.

        `sampling="halton"` draws its shifts here at the first timestep and keeps them until the next one, or until
        `set_timesteps` is called.

        Args:
            sample: `(B, N)` int64 codes with `mask_token_id` where still masked.
            timestep: the current entry of `timesteps`.
            generator: source of randomness, one or a list of one per sample.

        Returns:
            `(B, N)` bool, for `step(..., positions=...)`. Where none is true the step changes nothing and takes `None`
            for the model's output. Or `None` if the choice needs the logits (`sampling="confidence"`).

        Raises:
            ValueError: if `timestep` is unknown, or `sampling="halton"` lacks a grid that fits.
        """
        current, following = self._rates(timestep)
        masked = sample == self.config.mask_token_id
        if following == 0:
            return masked
        if self.config.sampling == "ancestral":
            draws = _uniform(masked.shape, generator, masked.device)
            return masked & (draws < (current - following) / current)
        excess = _excess(masked, following)
        if self.config.sampling == "confidence":
            return None if bool((excess > 0).any()) else torch.zeros_like(masked)
        return _first(self._priorities(masked, current, generator), masked, excess)

    def step(
        self,
        model_output: torch.Tensor | None,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: Generator = None,
        positions: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> AbsorbingSchedulerOutput | tuple[torch.Tensor, torch.Tensor | None]:
        r"""One reverse step from `timestep` t to the next timestep s (0 after the last).

        Args:
            model_output: `(B, N, K)` logits, K at most `mask_token_id`; or `(M, K)`, those of the M masked `positions`
                alone, row by row (of all masked ones with `sampling="confidence"`); may be `None` if `positions`
                settle nothing.
            timestep: the current entry of `timesteps`.
            sample: `(B, N)` int64 codes with `mask_token_id` where still masked.
            temperature: divides the logits; 0 takes the likeliest code.
            top_p: draws from the smallest set of codes that holds this much probability, in (0, 1].
            generator: source of randomness, one or a list of one per sample.
            positions: `(B, N)` bool from `select_positions`, called with the same generator just before, which is what
                happens here where they are left out. Settled positions among them stay as they are.
            return_dict: `False` for a plain tuple.

        Returns:
            `AbsorbingSchedulerOutput`; after the last step no mask is left.

        Raises:
            ValueError: if `temperature`, `top_p` or `timestep` is out of range, a shape does not fit, or logits are
                missing or not finite.
        """
        check_draw(temperature, top_p)
        following = self._rates(timestep)[1]
        if positions is None:
            positions = self.select_positions(sample, timestep, generator)
        elif positions.shape != sample.shape:
            raise ValueError(f"positions must be {tuple(sample.shape)} as the sample; got {tuple(positions.shape)}")
        masked = sample == self.config.mask_token_id
        candidates = masked if positions is None else masked & positions
        check_logits(model_output, sample, candidates, self.config.mask_token_id)
        noise = self._choice_noise(sample, following, generator)
        draws = _uniform(sample.shape, generator, sample.device)
        prev_sample, filled = sample.clone(), None
        if model_output is not None:
            logits = model_output if model_output.ndim == 2 else model_output[candidates]
            prev_sample[candidates] = codes = _draw_codes(logits, draws[candidates], temperature, top_p)
            if model_output.ndim == 3:
                filled = torch.where(masked, model_output.argmax(dim=-1), sample)
            if positions is None and noise is not None:
                scores = _log_probabilities(logits, codes, temperature) + noise[candidates]
                priorities = torch.zeros_like(noise).masked_scatter(candidates, -scores)
                kept = _first(priorities, masked, _excess(masked, following))
                prev_sample = torch.where(kept, prev_sample, sample)
        return AbsorbingSchedulerOutput(prev_sample, filled) if return_dict else (prev_sample, filled)

    def _rates(self, timestep: torch.Tensor | float) -> tuple[float, float]:
        index = (self.timesteps - float(timestep)).abs().argmin() if len(self.timesteps) else None
        if index is None or abs(float(self.timesteps[index]) - float(timestep)) > 1e-6:
            raise ValueError(
                f"timestep={float(timestep)} is not one of this scheduler's timesteps; call set_timesteps and "
                "pass its entries"
            )
        last = int(index) + 1 == len(self.timesteps)
        return float(self.timesteps[index]), 0.0 if last else float(self.timesteps[index + 1])

    def _priorities(self, masked: torch.Tensor, current: float, generator: Generator) -> torch.Tensor:
        """`(B, N)` float64; the positions of the smallest settle first."""
        if self.config.sampling == "exact_count":
            return _uniform(masked.shape, generator, masked.device)
        if self.config.sampling == "sequential":
            return self._sequential_ranks(masked)
        if self._halton_ranks is None or current == self.timesteps[0]:
            self._halton_ranks = self._draw_halton_ranks(masked, generator)
        if self._halton_ranks.shape != masked.shape:
            raise ValueError(
                f"sample is {tuple(masked.shape)}, but the Halton orders were drawn for "
                f"{tuple(self._halton_ranks.shape)}; call set_timesteps before another batch"
            )
        return self._halton_ranks

    def _draw_halton_ranks(self, masked: torch.Tensor, generator: Generator) -> torch.Tensor:
        grid = self._code_grid
        if grid is None or math.prod(grid) != masked.shape[1]:
            raise ValueError(
                f"sampling='halton' needs the sides of the grid of the {masked.shape[1]} codes; got {grid}. Call "
                "set_timesteps(..., code_grid=...)"
            )
        draws = _uniform(torch.Size((len(masked), len(grid))), generator, masked.device)
        shifts = (draws * torch.tensor(grid, dtype=draws.dtype, device=draws.device)).long()
        return shifted_halton_ranks(grid, shifts).double()

    def _sequential_ranks(self, sample: torch.Tensor) -> torch.Tensor:
        """`(B, N)` float64 rank of each position in the fixed order."""
        order = self.config.code_order
        if order is not None and len(order) != sample.shape[1]:
            raise ValueError(f"code_order has {len(order)} positions, but the sample {sample.shape[1]}")
        count = sample.shape[1]
        ranks = torch.arange(count) if order is None else torch.as_tensor(order).argsort()
        return ranks.to(sample.device, torch.float64).expand(sample.shape)

    def _choice_noise(self, sample: torch.Tensor, following: float, generator: Generator) -> torch.Tensor | None:
        """`(B, N)` float64 annealed Gumbel noise of `sampling="confidence"`; the last step settles all without it."""
        if self.config.sampling != "confidence" or following == 0:
            return None
        draws = _uniform(sample.shape, generator, sample.device).clamp(min=torch.finfo(torch.float64).tiny)
        return self.config.choice_temperature * following * -(-draws.log()).log()


def _excess(masked: torch.Tensor, following: float) -> torch.Tensor:
    """`(B, 1)` positions to settle so that `round(following * N)` masks are left; negative where there are fewer."""
    return masked.sum(dim=1, keepdim=True) - round(following * masked.shape[1])


def _first(priorities: torch.Tensor, masked: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Of each row's masked positions the `count` ones of the smallest priorities."""
    return masked & (_ranks(priorities.masked_fill(~masked, torch.inf)) < count)


def _uniform(shape: torch.Size, generator: Generator, device: torch.device) -> torch.Tensor:
    """Uniform float64 draws in [0, 1), one generator for all rows or one for each."""
    if isinstance(generator, list | tuple):
        if len(generator) != shape[0]:
            raise ValueError(f"got {len(generator)} generators for {shape[0]} samples; give one, or one per sample")
        return torch.cat([_uniform(torch.Size((1, *shape[1:])), each, device) for each in generator])
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, a list of one per sample, or None; got {generator!r}")
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Rank of each entry within its row, 0 for the smallest."""
    return values.argsort(dim=1).argsort(dim=1)


def _draw_codes(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Inverse-CDF draws from `(M, K)` logits with `(M,)` uniforms, in float64: float32 would round rare codes away."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double()
    # from the largest on downwards, so that next to no temperature leaves 0 for it and not inf
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(dim=-1)
    targets = draws[:, None] * cumulative[:, -1:]
    # right=True skips codes of zero probability; the last code with any bounds what rounding might push beyond it.
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).minimum(last)


def _log_probabilities(logits: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities `(M,)`, float64, of `(M,)` codes in the distribution they are drawn from (before `top_p` cuts
    it), at temperature 0 in the model's own."""
    logits = logits.double()
    logs = torch.log_softmax((logits - logits.amax(dim=-1, keepdim=True)) / (temperature or 1.0), dim=-1)
    return logs.gather(-1, codes[:, None]).squeeze(-1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
