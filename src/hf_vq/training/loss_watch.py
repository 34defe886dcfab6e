"""Which samples a training step is made of, and the way back to before it when its loss is not finite."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..quantizers.codebook import codebooks_of
from .alternating import AlternatingOptimizer
from .sampler import ResumableSampler

NAMED_SAMPLES = 16


class WatchedBatches:
    """The batches of a data loader, each of which is reported before it is handed out.

    Args:
        loader: gives the batches.
        note: called with the number of a batch, from 0, and the batch.
        begin: called before the first one is asked for.
        abandon: called when a loop over them ends before they do.
    """

    def __init__(
        self,
        loader: DataLoader,
        note: Callable[[int, Any], None],
        begin: Callable[[], None],
        abandon: Callable[[], None],
    ) -> None:
        self.loader, self._note, self._begin, self._abandon = loader, note, begin, abandon

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        try:
            for number, batch in enumerate(self.loader):
                self._note(number, batch)
                yield batch
        except GeneratorExit:
            self._abandon()
            raise


class BadStep(ValueError):
    """A loss or a gradient was not finite; the message names the samples."""


class StepWatch:
    """Losses and samples since the last optimizer step, and the state that the model had then.

    A forward pass in training mode changes buffers, codebooks and the state of the random numbers, all before anybody
    sees that its loss is not finite; the weights of the network are as they were. So copies of the former suffice.

    Args:
        model: without a distributed wrapper.
        alternating: the inner optimizer, if there is one.
        device: that the model computes on.
    """

    def __init__(self, model: nn.Module, alternating: AlternatingOptimizer | None, device: torch.device) -> None:
        self._alternating, self._device = alternating, device
        codes = [parameter for codebook in codebooks_of(model) for parameter in codebook.parameters()]
        self._tensors = [*codes, *model.buffers()]
        self.begin()

    def begin(self) -> None:
        """A new step: copies the state, and forgets losses and samples of the last one."""
        self._samples: list[Callable[[], list[str]]] = []
        self._losses: list[torch.Tensor] = []
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._moments = None if self._alternating is None else deepcopy(self._alternating.state_dict())
        is_cuda = self._device.type == "cuda"
        self._random = (torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if is_cuda else None)

    def note_batch(self, names: Callable[[], list[str]]) -> None:
        """A batch of the step begins; what its samples are called is asked when somebody wants to know."""
        self._samples.append(names)

    def note_loss(self, loss: torch.Tensor) -> None:
        """Keeps the loss of the last batch."""
        self._losses.append(loss.detach().reshape(()).float())

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Context of a forward pass and a backward pass: a ValueError in it is raised with the names of the samples."""
        try:
            yield
        except BadStep:
            raise
        except ValueError as error:
            names = [name for of_batch in self._samples[len(self._losses) :][:1] for name in of_batch()]
            if not names:
                raise
            raise ValueError(f"{error} (in the batch of {list_names(names)})") from error

    def any_bad(self) -> torch.Tensor:
        """Bool scalar on the losses' device: one of them is NaN or infinite. Nothing waits for a GPU here."""
        return ~torch.isfinite(torch.stack(self._losses)).all()

    def bad_samples(self, every: bool = False) -> list[str]:
        """Names of the samples whose loss is not finite; with `every`, of all samples of the step."""
        pairs = zip(self._losses, self._samples, strict=False)
        return [name for loss, names in pairs if every or not torch.isfinite(loss) for name in names()]

    def bad_loss(self) -> float:
        """The first loss of the step that is not finite; 0 if all are."""
        return next((float(loss) for loss in self._losses if not torch.isfinite(loss)), 0.0)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the model back to where it was before the first batch of the step."""
        for tensor, copied in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copied)
        if self._alternating is not None and self._moments is not None:
            self._alternating.load_state_dict(self._moments)
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1], self._device)


def sample_names(given: Any, dataset: Any, draws: ResumableSampler) -> list[str]:
    """Names of the samples of a batch: their subjects or, in data without names, their numbers in the data set.

    Args:
        given: the entry `subject` of the batch, if it has one.
        dataset: it comes from; its `subjects`, if it has any, name its samples.
        draws: the samples that the batch is made of.
    """
    if isinstance(given, (list, tuple)):
        return [str(name) for name in given]
    subjects = getattr(dataset, "subjects", None)
    return [str(index) if subjects is None else str(subjects[index]) for index in draws]


def list_names(names: Sequence[str]) -> str:
    """Names for a message, cut where there are many."""
    more = f" and {len(names) - NAMED_SAMPLES} more" if len(names) > NAMED_SAMPLES else ""
    return ", ".join(names[:NAMED_SAMPLES]) + more
