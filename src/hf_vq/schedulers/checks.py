"""What the absorbing scheduler's fields and the arguments of a step must satisfy; each check raises ValueError."""

from collections.abc import Sequence

import torch

from ..scalars import is_finite, is_whole

SCHEDULES = ("linear", "cosine")
SAMPLINGS = ("ancestral", "exact_count", "confidence", "halton", "sequential")
MASKINGS = ("random", "exact_count")


def check_config(
    mask_token_id: int,
    schedule: str,
    sampling: str,
    masking: str | None,
    choice_temperature: float,
    code_order: Sequence[int] | None,
) -> None:
    if not is_whole(mask_token_id) or mask_token_id < 1:
        raise ValueError(
            f"mask_token_id must be a whole number of at least 1, the size of the codebook; got {mask_token_id!r}"
        )
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is unknown; choose one of {SCHEDULES}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling={sampling!r} is unknown; choose one of {SAMPLINGS}")
    if masking is not None and masking not in MASKINGS:
        raise ValueError(f"masking={masking!r} is unknown; choose one of {MASKINGS}, or None")
    if not is_finite(choice_temperature) or choice_temperature < 0:
        raise ValueError(f"choice_temperature must be finite and at least 0; got {choice_temperature!r}")
    if code_order is not None and sorted(code_order) != list(range(len(code_order))):
        raise ValueError(f"code_order must hold each of 0 to N - 1 once; got {list(code_order)}")


def check_draw(temperature: float, top_p: float) -> None:
    if not is_finite(temperature) or temperature < 0:
        raise ValueError(f"temperature must be finite and at least 0; got {temperature!r}")
    if not is_finite(top_p) or not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p!r}")


def check_logits(
    model_output: torch.Tensor | None, sample: torch.Tensor, candidates: torch.Tensor, num_codes: int
) -> None:
    """Refuses logits of another shape than `AbsorbingScheduler.step` takes, and such as are no distribution.

    On an accelerator too: there half precision overflows, and NaN would silently become code 0. The answer comes in
    one read with the number of positions, for which the host waits anyway.

    Args:
        model_output: what the step was given.
        sample: `(B, N)` codes.
        candidates: `(B, N)` bool, positions that may settle.
        num_codes: largest number of codes that there can be logits for.
    """
    if model_output is None:
        if bool(candidates.any()):
            raise ValueError("model_output is None, but this step settles codes; give logits (B, N, K)")
        return
    _check_shape(model_output, sample, num_codes)
    # -inf is the logit of a code that is ruled out
    proper = model_output.amax(dim=-1).isfinite()
    if model_output.ndim == 3:
        proper = proper | ~candidates
    count, all_proper = torch.stack((candidates.sum(), proper.all())).tolist()
    if model_output.ndim == 2 and len(model_output) != count:
        raise ValueError(
            f"model_output has {len(model_output)} rows for {count} positions; give logits (M, K) of the masked "
            "`positions` alone, or (B, N, K)"
        )
    if not all_proper:
        raise ValueError(
            "model_output holds NaN or inf, or rules out every code of a position; lower guidance_scale or compute in "
            "a wider dtype"
        )


def _check_shape(model_output: torch.Tensor, sample: torch.Tensor, num_codes: int) -> None:
    if model_output.ndim not in (2, 3) or (model_output.ndim == 3 and sample.shape != model_output.shape[:2]):
        raise ValueError(
            f"model_output must be (B, N, K) and sample (B, N); got {tuple(model_output.shape)} and "
            f"{tuple(sample.shape)}"
        )
    if not 1 <= model_output.shape[-1] <= num_codes:
        raise ValueError(
            f"model_output holds logits of {model_output.shape[-1]} codes; expected 1 to {num_codes}, as mask_token_id "
            "says: the mask itself is never drawn"
        )
