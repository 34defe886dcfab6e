"""Training losses of absorbing code diffusion."""

import torch
import torch.nn.functional as F

CODE_LOSSES = ("elbo", "mlm", "reweighted_elbo")


def masked_code_loss(
    logits: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    timesteps: torch.Tensor,
    loss_type: str = "reweighted_elbo",
) -> torch.Tensor:
    r"""Cross-entropy of the true codes at masked positions, weighted over the mask rate t.

    With CE the sum over a volume's N positions that are masked, in nats, averaged over the batch:
    `"elbo"`: \(CE / (t N)\), the bound on the negative log-likelihood per code (Bond-Taylor et al., 2022, eq. 8);
    `"mlm"`: \(CE / \text{number masked}\);
    `"reweighted_elbo"`: \((1 - t + 1/N)\, CE / N\) (ibid., eq. 9; the discrete schedule's weight at t = 1 is 1/N, not
    0, so that the first sampling step is trained too).

    Args:
        logits: `(B, N, K)`.
        codes: `(B, N)` int64 true codes.
        masked: `(B, N)` bool, positions that count.
        timesteps: `(B,)` mask rates t in (0, 1]. Where an exact number of positions was masked, the rate is that number
            over N: the rate that was asked for may round to fewer positions than are masked, and 1/t would explode.
        loss_type: one of `CODE_LOSSES`.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: if `loss_type` is unknown.
    """
    num_positions = codes.shape[1]
    per_position = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none")
    summed = per_position.masked_fill(~masked, 0.0).sum(dim=1)
    rates = timesteps.to(summed)
    if loss_type == "elbo":
        weighted = summed / (rates * num_positions)
    elif loss_type == "mlm":
        weighted = summed / masked.sum(dim=1).clamp(min=1)
    elif loss_type == "reweighted_elbo":
        weighted = (1 - rates + 1 / num_positions) * summed / num_positions
    else:
        raise ValueError(f"loss_type={loss_type!r} is unknown; choose one of {CODE_LOSSES}")
    return weighted.mean()
