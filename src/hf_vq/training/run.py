"""What every training script does around its loop: Accelerate, optimizer, averaged weights, checkpoints, figures."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    set_seed,
)
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..quantizers import VectorQuantizer
from ..quantizers.codebook import PlacementWatch, codebooks_of
from .allocator import keep_freed_memory
from .alternating import AlternatingOptimizer, alternating_quantizers
from .arguments import TrainingArguments
from .checkpoints import (
    LOG_FILE,
)
from .companion import Companion, Stateful
from .diagnostics import codes_with_gradient
from .interruption import Interruption, ignore_signals
from .loss_watch import StepWatch, WatchedBatches, sample_names
from .memory import apply_memory_flags
from .moments import forget_moments, restart_averages
from .noise import draw_generator
from .output_folder import check_output_folder, cut_log
from .processes import decided_by_main
from .record import TrainingRecord, write_record
from .run_state import RunState
from .sampler import PartsTogether, ResumableSampler
from .sharding import AveragedWeights, check_distribution, is_sharded, whole_copy
from .speed import compile_parts, make_adamw

AT_LEAST_ONE = (
    *("max_train_steps", "train_batch_size", "gradient_accumulation_steps"),
    *("logging_steps", "validation_steps", "checkpoints_total_limit"),
)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Accelerator of a run, with all generators seeded by `args.seed`; on a CPU, see `keep_freed_memory`, too.

    Raises:
        ValueError: if the output folder holds something and neither `resume_from_checkpoint` nor `overwrite` is given.
    """
    check_output_folder(args)
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}")
    accelerator = Accelerator(
        # torchrun tells of its processes but not that they have no accelerator; each would believe to be the only one.
        cpu=int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        # The batches of a step are fetched together, so the end of the data loader comes before that of the last step.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if args.report_to == "none" else args.report_to,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / "logs")
        ),
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    set_seed(args.seed)
    return accelerator


class TrainingRun(RunState):
    """Model, optimizer, schedule, averaged weights and step counter of a training, saved and restored as one.

    Args:
        accelerator: from `make_accelerator`.
        model: the model to train; `save_pretrained` is used at the end.
        args: the script's flags.
        companion: what is trained, saved and restored with the model. It takes its step before `optimize` is called,
            which writes the checkpoints.
        states: what else is saved and restored with the model, under names.

    A folder is written to by one run at a time. SIGINT and SIGTERM, from the first batch on, end the run after the
    optimizer step with a checkpoint and the exit status 128 + the signal's number; see `Interruption`.

    Raises:
        ValueError: if another process writes to the folder, or there is nothing to go on from.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        args: TrainingArguments,
        companion: Companion | None = None,
        states: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.accelerator, self.args, self.step, self._companion = accelerator, args, 0, companion
        self.output_dir = Path(args.output_dir)
        self._lock, self._samples_seen, self._saved_step, self._resumed_step = ExitStack(), 0, 0, 0
        self._rows = self._rows_after_step = 0  # of the log; those of a validation come after it
        self._interruption = Interruption(announce=accelerator.is_main_process)
        decided_by_main(accelerator, self._occupy_folder)
        self.record = TrainingRecord(accelerator, args)
        for codebook in codebooks_of(model):
            if codebook.frozen:  # before the optimizer and the distributed wrapper look for what is to be trained
                codebook.freeze()
        apply_memory_flags(model, args)
        check_distribution(accelerator, model, companion is not None, args)
        groups = parameter_groups(model, args.weight_decay)
        optimizer = make_adamw(groups, args, accelerator.device)
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self._placements = PlacementWatch(model)
        self._quantizers = [module for module in model.modules() if isinstance(module, VectorQuantizer)]
        self.alternating: AlternatingOptimizer | None = None
        if alternating_quantizers(model):
            own_rate = args.codebook_learning_rate
            rate = args.learning_rate if own_rate is None else own_rate
            self.alternating = AlternatingOptimizer(model, rate, args.codebook_inner_steps)
        if args.compile:
            compile_parts(model, accelerator.device)
        self._model_class = type(model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        parameters = list(self.unwrapped_model.parameters())  # which may be others than before
        self.ema = AveragedWeights(parameters, decay=args.ema_decay, foreach=True)
        # Codes have gradients of another size (see codebook_lr_scale), which must not shrink those of the network.
        codes = {id(codebook.weight) for codebook in codebooks_of(model)}
        self._clipped = [parameter for parameter in parameters if id(parameter) not in codes]
        self._figures: list[dict[str, torch.Tensor]] = []
        self._states: dict[str, Stateful] = {"lr_scheduler": self.lr_scheduler, "ema": self.ema, **(states or {})}
        if self.alternating is not None:
            self._states["alternating"] = self.alternating
        if companion is not None:
            companion.prepare(accelerator)
            self._states |= companion.states()
        if accelerator.log_with:
            accelerator.init_trackers("hf_vq", config={k: str(v) for k, v in vars(args).items()})
        if args.resume_from_checkpoint:
            self._resume(args.resume_from_checkpoint)
        if self.step == 0 and accelerator.is_main_process:
            cut_log(self.output_dir / LOG_FILE, 0, 0)
        self._watch = StepWatch(self.unwrapped_model, self.alternating, accelerator.device)
        self._progress = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc=self.output_dir.name,
            disable=not accelerator.is_local_main_process,
        )

    @property
    def _samples_per_step(self) -> int:
        per_process = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def dataloader(self, dataset: Dataset) -> WatchedBatches:
        """All batches that are still to be trained on, shuffled anew each epoch, the same after a resume."""
        args, num_samples = self.args, len(dataset)  # type: ignore[arg-type]
        self.record.note_data(num_samples)
        start = self._samples_seen
        stop = start + max(args.max_train_steps - self.step, 0) * self._samples_per_step
        loader = DataLoader(
            dataset,
            batch_size=args.train_batch_size,
            sampler=PartsTogether(
                ResumableSampler(num_samples, start, stop, args.seed),
                args.train_batch_size,
                args.gradient_accumulation_steps,
                self.accelerator.num_processes,
            ),
            generator=torch.Generator(),  # else starting the loader takes a number from those that dropout draws
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_num_workers > 0,
            worker_init_fn=ignore_signals,
            pin_memory=self.accelerator.device.type == "cuda",  # the copy to the GPU waits for nothing then
        )

        def note(number: int, batch: Any) -> None:
            step, part = divmod(number, args.gradient_accumulation_steps)
            first = start + step * self._samples_per_step + self._first_of(part)
            draws = ResumableSampler(num_samples, first, first + args.train_batch_size, args.seed)
            given = batch.get("subject") if isinstance(batch, dict) else None
            self._watch.note_batch(partial(sample_names, given, dataset, draws))

        return WatchedBatches(
            self.accelerator.prepare(loader), note, self._interruption.watch, self._interruption.release
        )

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Context of all that is done with one batch: only the last before an optimizer step exchanges gradients.

        Raises:
            ValueError: what is raised within it, with the samples of the batch.
        """
        companions = [] if self._companion is None else [self._companion.model]
        with self._watch.naming(), self.accelerator.accumulate(self.model, *companions):
            yield

    def steps(self, dataset: Dataset) -> Iterator[list[Any]]:
        """The batches of `dataloader`, those of an optimizer step together: `gradient_accumulation_steps` of them."""
        batches = iter(self.dataloader(dataset))
        while parts := list(islice(batches, self.args.gradient_accumulation_steps)):
            yield parts

    def generators(self, part: int) -> list[torch.Generator]:
        """CPU generators for the noise of a batch, one for each sample.

        What a sample draws depends on the seed and on how many came before it in the training, not on the process or
        the batch that it is in, nor on a resume.

        Args:
            part: number of the batch within its optimizer step.
        """
        first = self._samples_seen + self._first_of(part)
        numbers = range(first, first + self.args.train_batch_size)
        return [draw_generator(self.args.seed, "sample", number) for number in numbers]

    def _first_of(self, part: int) -> int:
        """Place of this process's first sample of a part among the samples of an optimizer step."""
        parts = self.args.gradient_accumulation_steps
        return self.args.train_batch_size * (self.accelerator.process_index * parts + part)

    def step_generator(self) -> torch.Generator:
        """CPU generator for what all samples of an optimizer step share, on all processes."""
        return draw_generator(self.args.seed, "step", self.step)

    def begin_step(self, parts: Sequence[torch.Tensor]) -> None:
        """What happens to a model's codes before an optimizer step: call it before the first forward.

        The inner steps of alternating optimisation, if the model's quantizer asks for it; and with several batches to a
        step, all that a quantizer does with a training batch, once for all of them. Where nothing waits for the
        encoder's outputs, they are not computed.

        Args:
            parts: the batches that the model is about to be trained on.
        """
        joins = [quantizer for quantizer in self._quantizers if len(parts) > 1]
        latents = None
        if self.alternating is not None or any(quantizer.awaits_vectors for quantizer in joins):
            with torch.no_grad(), self.accelerator.autocast():
                latents = torch.cat([self.unwrapped_model.encode_latents(part) for part in parts])
        if self.alternating is not None and latents is not None:
            base_rate = self.lr_scheduler.base_lrs[0]
            self.alternating.step(latents, rate_factor=self.lr_scheduler.get_last_lr()[0] / base_rate)
        for quantizer in joins:
            quantizer.begin_batch(latents if quantizer.awaits_vectors else None)

    def optimize(self, loss: torch.Tensor, figures: Mapping[str, Any]) -> bool:
        """Backward and, when gradients are complete, one optimizer step.

        Args:
            loss: scalar.
            figures: scalars to log beside the loss.

        Returns:
            True if an optimizer step was made.

        Raises:
            ValueError: on all processes, naming the samples, if the loss of one is NaN or infinite or, without a
                gradient scaler, the gradient is. A checkpoint of the state before this step is kept.
            SystemExit: after a signal, see the class.
        """
        self._watch.note_loss(loss)
        self._note_figures({"loss": loss, **figures})
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            norm = self.accelerator.clip_grad_norm_(self._clipped, self.args.max_grad_norm)
            asked_to_stop = self._require_finite_step(norm)
            if self._logging_due(self.step + 1):
                reached = codes_with_gradient(self.unwrapped_model)
            moved = self._placements.take()
            forget_moments(self.optimizer.state, moved)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for quantizer in self._quantizers:
            quantizer.end_batch() if self.accelerator.sync_gradients else quantizer.next_part()
        if not self.accelerator.sync_gradients:
            return False
        self.lr_scheduler.step()
        self.ema.step(self.unwrapped_model.parameters())
        restart_averages(self.unwrapped_model, self.ema, moved)
        self.step, self._samples_seen = self.step + 1, self._samples_seen + self._samples_per_step
        self._watch.begin()
        self._progress.update()
        if self._logging_due(self.step):
            self.log({**self._take_figures(), **reached, "learning_rate": self.lr_scheduler.get_last_lr()[0]})
        self._rows_after_step = self._rows
        if self.args.checkpointing_steps and self.step % self.args.checkpointing_steps == 0:
            self.save_checkpoint()
        if asked_to_stop:
            self._leave(asked_to_stop)
        return True

    def _note_figures(self, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of a part of the step, if they are to be logged."""
        if self._logging_due(self.step + 1):
            device = self.accelerator.device
            tensors = {name: torch.as_tensor(value, device=device) for name, value in figures.items()}
            self._figures.append({name: value.detach().float() for name, value in tensors.items()})

    def _take_figures(self) -> dict[str, torch.Tensor]:
        """Means over the parts of the step."""
        parts, self._figures = self._figures, []
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _logging_due(self, step: int) -> bool:
        return step % self.args.logging_steps == 0 or step >= self.args.max_train_steps

    @property
    def validation_missed(self) -> bool:
        """True right after a resume from a checkpoint that was written before the validation of its step."""
        return 0 < self.step == self._resumed_step and self.validation_due

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.step >= self.args.max_train_steps

    @property
    def validation_due(self) -> bool:
        """True after every `validation_steps` steps and after the last one."""
        return self.finished or self.step % self.args.validation_steps == 0

    def log(self, figures: Mapping[str, Any]) -> None:
        """Appends scalars, averaged over processes, to `logs.jsonl`, to the tracker and to the progress bar."""
        device = self.accelerator.device
        values = {
            k: self.accelerator.reduce(torch.as_tensor(v, dtype=torch.float32, device=device).detach(), "mean")
            for k, v in figures.items()
        }
        plain = {key: float(value) for key, value in values.items()}
        self.accelerator.log(plain, step=self.step)
        self.record.note_figures(self.step, plain)
        if self.accelerator.is_main_process:
            with (self.output_dir / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **plain}) + "\n")
            self._rows += 1
            self._progress.set_postfix({key: f"{value:.4g}" for key, value in plain.items()})

    @contextmanager
    def averaged_weights(self) -> Iterator[Any]:
        """The model in eval mode with the averaged weights in place; afterwards training weights and mode are back.

        Where the parameters are spread over processes it is a copy that holds them whole; all processes come here.
        """
        model = self.unwrapped_model
        if is_sharded(model):
            yield whole_copy(model, self._model_class, self.ema.shadow_params, self.accelerator.device)
            return
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.ema.store(model.parameters())
        self.ema.copy_to(model.parameters())
        for codebook in codebooks_of(model):
            codebook.measure()
        model.eval()
        try:
            yield model
        finally:
            self.ema.restore(model.parameters())
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            model.train()

    def save_record(self, folder: str | Path, **parts: Any) -> None:
        """Writes `training.json`, which tells a model card how this training went, into a folder beside the model.

        Args:
            folder: an existing folder.
            parts: further entries, such as the records of the tokenizers that a pipeline contains.
        """
        write_record(folder, {**self.record.describe(self.unwrapped_model, self.step), **parts})


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decay pulls the weights of linear and convolutional layers towards zero only.

    Codebooks, embeddings, positions, norms and biases stand still unless a gradient moves them.
    """
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, layers)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
