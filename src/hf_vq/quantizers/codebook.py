"""The codebook: its weights, parameterisation, initialisation, usage, replacement and freezing."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration import VectorQuantizerConfig
from .distributed import all_reduce_sum, broadcast_from_main, gather_global_rows, row_offset
from .functional import active_fraction, as_float, kmeans, perplexity
from .host_flags import ForetoldFlag, RememberedFlag
from .parameterizations import LinearParameterization, RunningAffineParameterization, build_parameterization

# k-means sees at most this many vectors for each code; more hardly moves the centres and costs time.
KMEANS_SAMPLES_PER_CODE = 64
# Replaced codes are born beside an encoder output, this fraction of the outputs' spread away, so that no two coincide.
REPLACEMENT_NOISE = 1e-2


class Codebook(nn.Module):
    """K codes of C channels, raw in `weight` and effective through the parameterisation.

    State that changes in training only, all of it saved: `initialized` (k-means has run), `unused_batches` (for each
    code, training batches since it was last chosen), `num_batches` (training batches seen; it also numbers the
    random draws, so that a resumed run draws what an uninterrupted one would) and, with `update="ema"`, the averages.
    `frozen` is saved with them. `placements` is not: it counts how often each code was placed anew, for whoever keeps
    moments or averages of the codes (see `PlacementWatch`). Neither is `has_own_optimizer`: an optimizer that takes
    charge of the codes in alternating optimisation sets it. With gradient accumulation several forwards are parts of
    one training batch: `is_prepared` says that `prepare` was called for the batch as a whole, `continues_batch` that
    the coming part is not its first (see `VectorQuantizer.begin_batch`).

    Args:
        config: the quantizer's choices.
        index: which of the quantizer's codebooks this is; each draws random numbers of its own.
    """

    initialized: torch.Tensor
    unused_batches: torch.Tensor
    num_batches: torch.Tensor
    frozen: torch.Tensor
    placements: torch.Tensor

    def __init__(self, config: VectorQuantizerConfig, index: int = 0) -> None:
        super().__init__()
        self.config, self.index = config, index
        self.has_own_optimizer = self.is_prepared = self.continues_batch = False
        size, dim = config.codebook_size, config.dim_per_codebook
        self.weight = nn.Parameter(torch.empty(size, dim), requires_grad=self._weight_learns)
        self.parameterization = build_parameterization(config)
        self.averages = CodeAverages(size, dim, config.ema_decay) if config.update == "ema" else None
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool))
        self.register_buffer("unused_batches", torch.empty(size, dtype=torch.int64))
        self.register_buffer("num_batches", torch.empty((), dtype=torch.int64))
        self.register_buffer("frozen", torch.empty((), dtype=torch.bool))
        self.register_buffer("placements", torch.empty(size, dtype=torch.int64), persistent=False)
        self._frozen_flag, self._initialized_flag, self._replacement_flag = (
            RememberedFlag(),
            RememberedFlag(),
            ForetoldFlag(),
        )
        self.reset_parameters()

    @property
    def _weight_learns(self) -> bool:
        return self.config.update != "ema" and self.config.parameterization != "linear"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Puts weights and counters into their state before training; fills every parameter and buffer."""
        size, parameterization = self.config.codebook_size, self.parameterization
        if isinstance(parameterization, LinearParameterization):
            nn.init.normal_(self.weight, std=self.config.dim_per_codebook**-0.5)
        elif isinstance(parameterization, RunningAffineParameterization):
            nn.init.normal_(self.weight, std=parameterization.initial_std)
        else:
            bound = 1.0 / (size * parameterization.code_scale)
            nn.init.uniform_(self.weight, -bound, bound)
        self.parameterization.reset_parameters()
        if self.averages is not None:
            self.averages.reset_parameters()
        nn.init.constant_(self.initialized, self.config.init != "kmeans")
        for counter in (self.unused_batches, self.num_batches, self.frozen, self.placements):
            nn.init.zeros_(counter)

    def effective(self) -> torch.Tensor:
        """Codes as used for look-up and decoding: `(K, C)`, float32 or better, differentiable in raw codes and
        parameterisation."""
        return self()  # by a call of the module, which is what offloading waits for to bring the weights

    def forward(self) -> torch.Tensor:
        """What `effective` returns."""
        with torch.autocast(self.weight.device.type, enabled=False):
            # A copy: a later batch may place codes in `weight` before the backward of this one. And no parameter leaves
            # this call, when group offloading exchanges its data.
            raw = as_float(self.weight.clone() if self.training else self.weight.view_as(self.weight))
            return self.normalize(self.parameterization(raw))

    def normalize(self, vectors: torch.Tensor) -> torch.Tensor:
        """`(N, C)` vectors as the distance sees them: with `"cosine"` of length 1, otherwise as they are."""
        return F.normalize(vectors, dim=-1) if self.config.distance == "cosine" else vectors

    @torch.no_grad()
    def set_effective(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Places codes: afterwards `effective()[indices] == normalize(vectors)`. Shapes `(m, C)` and `(m,)`."""
        self.weight[indices] = self.parameterization.inverse(as_float(vectors), indices).to(self.weight)
        self.placements[indices] += 1
        if self.averages is not None:
            self.averages.restart(self.weight[indices], indices)

    def measure(self) -> None:
        """Takes the moments of the raw codes anew, for codes that something else than training has exchanged."""
        if isinstance(self.parameterization, RunningAffineParameterization) and self.parameterization.started:
            self.parameterization.measure_codes(as_float(self.weight))

    @property
    def awaits_vectors(self) -> bool:
        """True if the next training batch does something to the codes before it is quantised that depends on it."""
        if self.is_frozen:
            return False
        takes_moments = isinstance(self.parameterization, RunningAffineParameterization)
        return takes_moments or not self.is_initialized or self._replacement_is_due

    @property
    def is_frozen(self) -> bool:
        """The flag `frozen`, known to the host."""
        return self._frozen_flag.read(self.frozen)

    @property
    def is_initialized(self) -> bool:
        """The flag `initialized`, known to the host."""
        return self._initialized_flag.read(self.initialized)

    @property
    def _replacement_is_due(self) -> bool:
        if self.config.replace_after is None:
            return False
        foretold = self._replacement_flag.read(self.unused_batches)
        return bool(self._some_unused(self.config.replace_after)) if foretold is None else foretold

    def _some_unused(self, replace_after: int) -> torch.Tensor:
        """Scalar bool: a code has not been chosen for so many batches."""
        return (self.unused_batches >= replace_after).any()

    def freeze(self) -> None:
        """Stops everything that changes the codes: gradients, averages, initialisation, counters and replacement."""
        self.frozen.fill_(True)
        self.requires_grad_(False)

    @torch.compiler.disable  # compiled graphs write to buffers without counting it, which the known flags rely on
    @torch.no_grad()
    def prepare(self, vectors: torch.Tensor, batch: torch.Tensor | None = None) -> None:
        """What must happen to the codes before a training batch is quantised.

        The averages of the batch before are taken over, moments are updated, and codes are placed: all by k-means once,
        later the unused ones. It runs before the batch's graph is built, so no tensor saved for backward is ever
        changed in place, and until the next training batch the codes decode to what was quantised.

        Args:
            vectors: `(N, C)` float32, this rank's encoder outputs.
            batch: the layer's whole input where `vectors` are only a part of its channels: nothing is initialised from
                the finite part of a batch that is not.

        Raises:
            ValueError: if the codes or their moments are to be initialised and the batch, of any rank, holds NaN or
                infinity. Nothing has changed then.
        """
        if self.is_frozen:
            self.requires_grad_(False)  # a loaded state brings the flag of freezing but not that of the gradients
            return
        if self.is_prepared or self.continues_batch:
            return
        if not self.is_initialized or self.parameterization.awaits_first_batch:
            _refuse_non_finite(vectors if batch is None else batch)
        if self.averages is not None:
            self.averages.move(self.weight)
        self.parameterization.observe(as_float(self.weight), vectors)
        if not self.is_initialized:
            self._initialize(vectors)
        elif self.config.replace_after is not None and self._replacement_is_due:
            self._replace_unused(vectors, self.config.replace_after)

    @torch.compiler.disable  # compiled graphs write to buffers without counting it, which the known flags rely on
    @torch.no_grad()
    def record(self, counts: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        """Takes note of a training batch, or of the next part of it.

        Args:
            counts: `(K,)` int64, how often each code was chosen on all ranks.
            vectors: `(N, C)` float32, this rank's encoder outputs.
            codes: `(N,)` int64, the codes chosen for them.
        """
        if self.is_frozen:
            return
        if not self.continues_batch:
            self.unused_batches.add_(1)
            self.num_batches.add_(1)
        self.unused_batches.masked_fill_(counts > 0, 0)
        if self.config.replace_after is not None:
            self._replacement_flag.send(self._some_unused(self.config.replace_after), self.unused_batches)
        if self.averages is not None:
            self.averages.collect(counts, vectors, codes, self.continues_batch)

    def _generator(self) -> torch.Generator:
        seed = (self.config.seed * 1009 + self.index) * 1_000_003 + int(self.num_batches)
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


def _refuse_non_finite(batch: torch.Tensor) -> None:
    kinds = {"NaN": batch.isnan(), "infinite": batch.isinf()}
    counts = all_reduce_sum(torch.stack([kind.sum() for kind in kinds.values()])).tolist()  # all ranks raise, or none
    if any(counts):
        found = " and ".join(f"{count} {name} values" for name, count in zip(kinds, counts, strict=True))
        raise ValueError(
            f"found {found} in the features of the first training batch, from which the codebook is initialised; "
            "expected finite ones. Check the data and the encoder (a half-precision overflow?), or skip the batch: "
            "nothing has changed yet"
        )


class CodeAverages(nn.Module):
    r"""Exponential moving averages of the encoder outputs of each code (van den Oord et al., 2017, appendix A.1).

    \(n_k \leftarrow \gamma n_k + (1-\gamma) |Z_k|\), \(m_k \leftarrow \gamma m_k + (1-\gamma) \sum_{z \in Z_k} z\),
    \(e_k = m_k / n_k\). A batch's sums wait in `pending_*` until the next batch comes, so that the codes a batch was
    quantised with stay in place for decoding and for evaluation. Codes that a batch did not choose stand still, so no
    smoothing of the counts is needed.

    Args:
        codebook_size: K.
        codebook_dim: C.
        decay: gamma.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    pending_counts: torch.Tensor
    pending_sums: torch.Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name in ("counts", "pending_counts"):
            self.register_buffer(name, torch.zeros(codebook_size))
        for name in ("sums", "pending_sums"):
            self.register_buffer(name, torch.zeros(codebook_size, codebook_dim))

    def reset_parameters(self) -> None:
        """Empties all averages: the first batch that chooses a code sets it."""
        for buffer in (self.counts, self.sums, self.pending_counts, self.pending_sums):
            nn.init.zeros_(buffer)

    def restart(self, weight: torch.Tensor, indices: torch.Tensor) -> None:
        """Starts codes anew at `weight` `(m, C)`, which weighs as much as one encoder output in each batch."""
        self.counts[indices] = 1.0
        self.sums[indices] = weight
        self.pending_counts[indices] = 0.0
        self.pending_sums[indices] = 0.0

    def collect(self, counts: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, adds: bool = False) -> None:
        """Sums of a batch over all ranks, to wait for `move`: shapes as for `Codebook.record`. With `adds` they come on
        top of those that wait already."""
        sums = all_reduce_sum(torch.zeros_like(self.sums).index_add_(0, codes, vectors.to(self.sums)))
        for pending, part in ((self.pending_counts, counts), (self.pending_sums, sums)):
            pending.add_(part) if adds else pending.copy_(part)

    def move(self, weight: torch.Tensor) -> None:
        """Takes the waiting sums into the averages and moves the codes that they concern, in `weight` `(K, C)`."""
        used = self.pending_counts > 0
        share = (1 - self.decay) * used.any().to(self.counts)  # where nothing waits, nothing fades
        self.counts.lerp_(self.pending_counts, share)
        self.sums.lerp_(self.pending_sums, share)
        weight.copy_(torch.where(used[:, None], self.sums / self.counts[:, None], weight))
        self.pending_counts.zero_()
        self.pending_sums.zero_()


def codebooks_of(model: nn.Module) -> list[Codebook]:
    """All codebooks in a model, in the order of its modules; none where no quantizer stores codes."""
    return [module for module in model.modules() if isinstance(module, Codebook)]


class PlacementWatch:
    """Tells which codes of a model were placed anew since it was last asked.

    Args:
        model: any module; all `Codebook`s in it are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._codebooks = codebooks_of(model)
        self._seen = [codebook.placements.clone() for codebook in self._codebooks]

    def take(self) -> list[tuple[Codebook, torch.Tensor]]:
        """Each codebook with a `(K,)` bool mask of its codes placed anew since the last call."""
        pairs = list(zip(self._codebooks, self._seen, strict=True))
        moved = [(codebook, codebook.placements != seen.to(codebook.placements)) for codebook, seen in pairs]
        self._seen = [codebook.placements.clone() for codebook in self._codebooks]
        return moved


class CodebookUsage:
    """Usage of a quantizer's codes over an epoch or an evaluation set, reduced over processes.

    Args:
        codebook_size: K.
        num_codebooks: with several, figures are means over them.
    """

    def __init__(self, codebook_size: int, num_codebooks: int = 1) -> None:
        self.counts = torch.zeros(num_codebooks, codebook_size, dtype=torch.int64)

    def update(self, codes: torch.Tensor) -> None:
        """Adds codes, int64 in `[0, K)`, of any shape; with several codebooks `(B, num_codebooks, ...)`."""
        books = [codes] if len(self.counts) == 1 else codes.unbind(dim=1)
        for counts, book in zip(self.counts, books, strict=True):
            counts += torch.bincount(book.detach().flatten().cpu(), minlength=len(counts))

    def compute(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Figures over all processes.

        Args:
            device: device of the communication.

        Returns:
            `{"active_fraction", "active_codes", "perplexity"}`.
        """
        counts = all_reduce_sum(self.counts.to(device))
        active = int((counts > 0).sum())
        return {
            "active_fraction": float(active_fraction(counts)),
            "active_codes": active if len(counts) == 1 else active / len(counts),
            "perplexity": float(torch.stack([perplexity(book) for book in counts]).mean()),
        }
