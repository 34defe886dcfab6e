"""What every training script does around its loop: Accelerate, optimizer, averaged weights, checkpoints, figures."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..files import follow_umask
from ..quantizers.codebook import PlacementWatch, codebooks_of
from .alternating import AlternatingOptimizer, alternating_quantizers
from .arguments import TrainingArguments
from .diagnostics import codes_with_gradient
from .moments import forget_moments, restart_averages
from .record import TrainingRecord, write_record
from .sampler import ResumableSampler

CHECKPOINT_PREFIX = "checkpoint-"
CHECKPOINT_INFO = "checkpoint.json"
LOG_FILE = "logs.jsonl"
RELEASE_SECONDS = 0.5
AT_LEAST_ONE = (
    *("max_train_steps", "train_batch_size", "gradient_accumulation_steps"),
    *("logging_steps", "validation_steps", "checkpoints_total_limit"),
)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Accelerator of a run, with all generators seeded by `args.seed`.

    Raises:
        ValueError: if the output folder holds something and neither `resume_from_checkpoint` nor `overwrite` is given.
    """
    output_dir = Path(args.output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()) and not args.resume_from_checkpoint:
        if not args.overwrite:
            going_on = (
                " or --resume_from_checkpoint latest to go on"
                if list_checkpoints(output_dir)
                else ("; it holds no checkpoint to go on from")
            )
            raise ValueError(
                f"--output_dir {args.output_dir} is not empty; choose another one, or pass --overwrite true to start "
                f"again{going_on}"
            )
        if not (output_dir / LOG_FILE).is_file():
            raise ValueError(
                f"--output_dir {args.output_dir} holds no {LOG_FILE}, so no training wrote it and --overwrite leaves "
                "it alone; choose another one"
            )
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}")
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=str(output_dir / "logs")),
    )
    set_seed(args.seed)
    return accelerator


class Companion(Protocol):
    """A second network with an optimizer of its own that is trained beside the model, such as a discriminator.

    Attributes:
        model: the network; its gradients are exchanged between processes when the model's are.
    """

    model: nn.Module

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values that a checkpoint and the training that resumes from it must agree on."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Hands the network and its optimizer to `accelerator.prepare`, and other state to
        `accelerator.register_for_checkpointing`."""


class TrainingRun:
    """Model, optimizer, schedule, averaged weights and step counter of a training, saved and restored as one.

    Args:
        accelerator: from `make_accelerator`.
        model: the model to train; `save_pretrained` is used at the end.
        args: the script's flags.
        companion: what is trained, saved and restored with the model. It takes its step before `optimize` is called,
            which writes the checkpoints.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, args: TrainingArguments, companion: Companion | None = None
    ) -> None:
        self.accelerator, self.args, self.step, self._companion = accelerator, args, 0, companion
        self.output_dir = Path(args.output_dir)
        if accelerator.is_main_process:
            if args.overwrite and not args.resume_from_checkpoint and self.output_dir.is_dir():
                shutil.rmtree(self.output_dir)
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / LOG_FILE).touch()
        accelerator.wait_for_everyone()
        self.record = TrainingRecord(accelerator, args)
        for codebook in codebooks_of(model):
            if codebook.frozen:  # before the optimizer and the distributed wrapper look for what is to be trained
                codebook.freeze()
        groups = parameter_groups(model, args.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
        )
        self.ema = EMAModel(model.parameters(), decay=args.ema_decay)
        self._placements = PlacementWatch(model)
        self.alternating: AlternatingOptimizer | None = None
        if alternating_quantizers(model):
            own_rate = args.codebook_learning_rate
            rate = args.learning_rate if own_rate is None else own_rate
            self.alternating = AlternatingOptimizer(model, rate, args.codebook_inner_steps)
        # Codes have gradients of another size (see codebook_lr_scale), which must not shrink those of the network.
        codes = {id(codebook.weight) for codebook in codebooks_of(model)}
        self._clipped = [parameter for parameter in model.parameters() if id(parameter) not in codes]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema.to(accelerator.device)
        accelerator.register_for_checkpointing(self.lr_scheduler, self.ema)
        if self.alternating is not None:
            accelerator.register_for_checkpointing(self.alternating)
        if companion is not None:
            companion.prepare(accelerator)
        if accelerator.log_with:
            accelerator.init_trackers("hf_vq", config={k: str(v) for k, v in vars(args).items()})
        if args.resume_from_checkpoint:
            self._resume(args.resume_from_checkpoint)
        self._progress = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc=self.output_dir.name,
            disable=not accelerator.is_local_main_process,
        )

    @property
    def unwrapped_model(self) -> Any:
        """The model without the wrapper of a distributed setup."""
        return self.accelerator.unwrap_model(self.model)

    def dataloader(self, dataset: Dataset) -> DataLoader:
        """Loader of all batches that are still to be trained on, shuffled anew each epoch, the same after a resume."""
        args, num_samples = self.args, len(dataset)  # type: ignore[arg-type]
        self.record.note_data(num_samples)
        per_step = args.train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        sampler = ResumableSampler(num_samples, self.step * per_step, args.max_train_steps * per_step, args.seed)
        loader = DataLoader(
            dataset,
            batch_size=args.train_batch_size,
            sampler=sampler,
            generator=torch.Generator(),  # else starting the loader takes a number from those that dropout draws
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_num_workers > 0,
        )
        return self.accelerator.prepare(loader)

    def accumulate(self) -> AbstractContextManager[None]:
        """Context of all that is done with one batch: only the last before an optimizer step exchanges gradients."""
        companions = [] if self._companion is None else [self._companion.model]
        return self.accelerator.accumulate(self.model, *companions)

    def generator(self, batch_index: int) -> torch.Generator:
        """CPU generator for the noise of one batch: it depends on seed, step, rank and batch, not on a resume."""
        args, accelerator = self.args, self.accelerator
        number = (self.step * accelerator.num_processes + accelerator.process_index) * args.gradient_accumulation_steps
        return torch.Generator().manual_seed(args.seed * 1_000_003 + number + batch_index)

    def move_codes(self, pixel_values: torch.Tensor) -> None:
        """The inner steps of alternating optimisation, if the model's quantizer asks for it: call it before forward.

        Args:
            pixel_values: the batch that the model is about to be trained on.
        """
        if self.alternating is not None:
            with torch.no_grad(), self.accelerator.autocast():
                latents = self.unwrapped_model.encode_latents(pixel_values)
            base_rate = self.lr_scheduler.base_lrs[0]
            self.alternating.step(latents, rate_factor=self.lr_scheduler.get_last_lr()[0] / base_rate)

    def optimize(self, loss: torch.Tensor, figures: Mapping[str, Any]) -> bool:
        """Backward and, when gradients are complete, one optimizer step.

        Args:
            loss: scalar.
            figures: scalars to log beside the loss.

        Returns:
            True if an optimizer step was made.

        Raises:
            ValueError: if the loss is NaN or infinite; checkpoints written before are kept.
        """
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {float(loss)} at step {self.step + 1}; lower --learning_rate or check the data. "
                f"Checkpoints in {self.output_dir} are intact."
            )
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self._clipped, self.args.max_grad_norm)
            if self._logging_due(self.step + 1):
                figures = {**figures, **codes_with_gradient(self.unwrapped_model)}
            moved = self._placements.take()
            forget_moments(self.optimizer.state, moved)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.sync_gradients:
            return False
        self.lr_scheduler.step()
        self.ema.step(self.unwrapped_model.parameters())
        restart_averages(self.unwrapped_model, self.ema, moved)
        self.step += 1
        self._progress.update()
        if self._logging_due(self.step):
            self.log({"loss": loss, **figures, "learning_rate": self.lr_scheduler.get_last_lr()[0]})
        if self.args.checkpointing_steps and self.step % self.args.checkpointing_steps == 0:
            self.save_checkpoint()
        return True

    def _logging_due(self, step: int) -> bool:
        return step % self.args.logging_steps == 0 or step >= self.args.max_train_steps

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
            self._progress.set_postfix({key: f"{value:.4g}" for key, value in plain.items()})

    @contextmanager
    def averaged_weights(self) -> Iterator[Any]:
        """The model in eval mode with the averaged weights in place; afterwards training weights and mode are back."""
        model = self.unwrapped_model
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

    def save_checkpoint(self) -> None:
        """Writes the whole state under a temporary name, renames it, and removes the oldest beyond the limit."""
        path = self.output_dir / f"{CHECKPOINT_PREFIX}{self.step:07d}"
        temporary = self.output_dir / f".{path.name}.partial"
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._finish_checkpoint(temporary)
            follow_umask(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            for old in list_checkpoints(self.output_dir)[: -self.args.checkpoints_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def save_record(self, folder: str | Path, **parts: Any) -> None:
        """Writes `training.json`, which tells a model card how this training went, into a folder beside the model.

        Args:
            folder: an existing folder.
            parts: further entries, such as the records of the tokenizers that a pipeline contains.
        """
        write_record(folder, {**self.record.describe(self.unwrapped_model, self.step), **parts})

    def end(self) -> None:
        """Closes progress bar and trackers, once all processes have come here."""
        self._progress.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.accelerator.num_processes > 1:
            # Gloo's threads take the interpreter's lock to let go of their last tensors. The distributed wrapper, when
            # it dies with the caller's frame, holds that lock and waits for the threads: both wait for ever. Sleeping
            # hands the lock over before.
            time.sleep(RELEASE_SECONDS)

    def _finish_checkpoint(self, folder: Path) -> None:
        info = {
            "step": self.step,
            "model_class": type(self.unwrapped_model).__name__,
            "config": _config_of(self.unwrapped_model),
            "companion": {} if self._companion is None else self._companion.settings,
            "record": self.record.state(),
        }
        (folder / CHECKPOINT_INFO).write_text(json.dumps(info, default=str), encoding="utf-8")

    def _resume(self, which: str) -> None:
        path = find_checkpoint(self.output_dir, which)
        info = json.loads((path / CHECKPOINT_INFO).read_text(encoding="utf-8"))
        model = self.unwrapped_model
        if info["model_class"] != type(model).__name__:
            raise ValueError(
                f"{path} is a checkpoint of a {info['model_class']}; this script trains a {type(model).__name__}"
            )
        config = json.loads(json.dumps(_config_of(model), default=str))
        # A field that is younger than the checkpoint had no choice then.
        changed = sorted(k for k in info["config"] if config.get(k) != info["config"][k])
        then, now = info.get("companion", {}), {} if self._companion is None else self._companion.settings
        changed += sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
        if changed:
            raise ValueError(
                f"{path} was made with other values of {changed}; resume with the config it was started with"
            )
        self.accelerator.load_state(str(path))
        self.ema.to(self.accelerator.device)  # custom states are loaded onto the CPU
        self.step = info["step"]
        self.record.restore(info.get("record"))
        self.accelerator.print(f"resumed from {path.name} (step {self.step})")


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


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints in a folder, oldest first."""
    return sorted(path for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*") if (path / CHECKPOINT_INFO).is_file())


def find_checkpoint(output_dir: Path, which: str) -> Path:
    """The checkpoint that `--resume_from_checkpoint` means: a folder, a name inside `output_dir`, or `latest`.

    Raises:
        ValueError: if there is no such complete checkpoint.
    """
    if which == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            raise ValueError(
                f"--resume_from_checkpoint latest: {output_dir} holds no complete checkpoint; start without it, and "
                "with --overwrite true where the folder is not empty"
            )
        return found[-1]
    for path in (Path(which), output_dir / which):
        if (path / CHECKPOINT_INFO).is_file():
            return path
    raise ValueError(
        f"--resume_from_checkpoint {which}: no folder with {CHECKPOINT_INFO} there; name a checkpoint or 'latest'"
    )


def _config_of(model: Any) -> dict[str, Any]:
    config = model.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in values.items() if not key.startswith("_") and not key.endswith("_version")}
