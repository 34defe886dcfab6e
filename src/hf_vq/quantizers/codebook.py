"""The codebook: its weights, parameterisation, initialisation, usage, replacement and freezing."""

import torch
from torch import nn

from .affine import AffineParameterization, PlainParameterization
from .configuration import VectorQuantizerConfig
from .distributed import all_reduce_sum, broadcast_from_main, gather_global_rows, row_offset
from .functional import active_fraction, kmeans, perplexity

# k-means sees at most this many vectors for each code; more hardly moves the centres and costs time.
KMEANS_SAMPLES_PER_CODE = 64
# Replaced codes are born beside an encoder output, this fraction of the outputs' spread away, so that no two coincide.
REPLACEMENT_NOISE = 1e-2


class Codebook(nn.Module):
    """K codes of C channels, raw in `weight` and effective through the parameterisation.

    State that changes in training only, all of it saved: `initialized` (k-means has run), `unused_batches` (for each
    code, training batches since it was last chosen) and `num_batches` (training batches seen; it also numbers the
    random draws, so that a resumed run draws what an uninterrupted one would). `frozen` is saved with them.
    `moved` is not: it marks codes placed anew since it was last cleared, for whoever keeps moments or averages of them.
    """

    initialized: torch.Tensor
    unused_batches: torch.Tensor
    num_batches: torch.Tensor
    frozen: torch.Tensor
    moved: torch.Tensor

    def __init__(self, config: VectorQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim))
        self.parameterization = _build_parameterization(config)
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool))
        self.register_buffer("unused_batches", torch.empty(config.codebook_size, dtype=torch.int64))
        self.register_buffer("num_batches", torch.empty((), dtype=torch.int64))
        self.register_buffer("frozen", torch.empty((), dtype=torch.bool))
        self.register_buffer("moved", torch.empty(config.codebook_size, dtype=torch.bool), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Puts weights and counters into their state before training; fills every parameter and buffer."""
        bound = 1.0 / self.config.codebook_size
        nn.init.uniform_(self.weight, -bound, bound)
        for parameter in self.parameterization.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(self.initialized, self.config.init != "kmeans")
        nn.init.zeros_(self.unused_batches)
        nn.init.zeros_(self.num_batches)
        nn.init.zeros_(self.frozen)
        nn.init.zeros_(self.moved)

    def effective(self) -> torch.Tensor:
        """Codes as used for look-up and decoding: `(K, C)`, differentiable in raw codes and parameterisation."""
        return self.parameterization(self.weight)

    @torch.no_grad()
    def set_effective(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Places codes: afterwards `effective()[indices] == vectors`. Shapes `(m, C)` and `(m,)`."""
        self.weight[indices] = self.parameterization.inverse(vectors.to(self.weight), indices)
        self.moved[indices] = True

    def freeze(self) -> None:
        """Stops everything that changes the codes: gradients, initialisation, usage counters and replacement."""
        self.frozen.fill_(True)
        self.requires_grad_(False)

    @torch.no_grad()
    def prepare(self, vectors: torch.Tensor) -> None:
        """What must happen to the codes before a training batch is quantised: k-means once, then replacement.

        It runs before the batch's graph is built, so no tensor saved for backward is ever changed in place.

        Args:
            vectors: `(N, C)` float32, this rank's encoder outputs.
        """
        if self.frozen:
            self.requires_grad_(False)  # a loaded state brings the flag of freezing but not that of the gradients
            return
        if not self.initialized:
            self._initialize(vectors)
        elif self.config.replace_after is not None:
            self._replace_unused(vectors, self.config.replace_after)

    @torch.no_grad()
    def record(self, counts: torch.Tensor) -> None:
        """Takes note of a training batch's usage.

        Args:
            counts: `(K,)` int64, how often each code was chosen on all ranks.
        """
        if self.frozen:
            return
        self.unused_batches.add_(1).masked_fill_(counts > 0, 0)
        self.num_batches.add_(1)

    def _generator(self) -> torch.Generator:
        seed = self.config.seed * 1_000_003 + int(self.num_batches)
        return torch.Generator().manual_seed(seed)

    def _initialize(self, vectors: torch.Tensor) -> None:
        generator = self._generator()
        offset, total = row_offset(len(vectors), vectors.device)
        if total == 0:
            return
        wanted = min(total, KMEANS_SAMPLES_PER_CODE * self.config.codebook_size)
        indices = torch.randperm(total, generator=generator)[:wanted].to(vectors.device)
        centres = kmeans(gather_global_rows(vectors, indices, offset), self.config.codebook_size, generator)
        centres = broadcast_from_main(centres)
        self.set_effective(centres, torch.arange(self.config.codebook_size, device=vectors.device))
        self.initialized.fill_(True)

    def _replace_unused(self, vectors: torch.Tensor, replace_after: int) -> None:
        unused = (self.unused_batches >= replace_after).nonzero().squeeze(1)
        if len(unused) == 0:
            return
        offset, total = row_offset(len(vectors), vectors.device)
        if total == 0:
            return
        generator = self._generator()
        draws = torch.randint(total, (len(unused),), generator=generator).to(vectors.device)
        noise = torch.randn(len(unused), vectors.shape[1], generator=generator).to(vectors)
        rows = gather_global_rows(vectors, draws, offset)
        spread = rows.std(dim=0, correction=0)
        self.set_effective(broadcast_from_main(rows + REPLACEMENT_NOISE * spread * noise), unused)
        self.unused_batches[unused] = 0


def _build_parameterization(config: VectorQuantizerConfig) -> PlainParameterization | AffineParameterization:
    if config.parameterization == "affine":
        return AffineParameterization(
            config.codebook_size, config.codebook_dim, config.affine_groups, config.affine_lr_scale
        )
    return PlainParameterization()


class CodebookUsage:
    """Usage of a codebook over an epoch or an evaluation set, reduced over processes.

    Args:
        codebook_size: K.
    """

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, codes: torch.Tensor) -> None:
        """Adds codes of any shape, int64 in `[0, K)`."""
        self.counts += torch.bincount(codes.detach().flatten().cpu(), minlength=len(self.counts))

    def compute(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Figures over all processes.

        Args:
            device: device of the communication.

        Returns:
            `{"active_fraction", "active_codes", "perplexity"}`.
        """
        counts = all_reduce_sum(self.counts.to(device))
        return {
            "active_fraction": float(active_fraction(counts)),
            "active_codes": int((counts > 0).sum()),
            "perplexity": float(perplexity(counts)),
        }
