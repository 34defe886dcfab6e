"""How a training run is saved, gone on with and stopped: the part of `TrainingRun` that is not about training."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..locking import exclusive
from .arguments import TrainingArguments
from .checkpoints import (
    CHECKPOINT_INFO,
    LOG_FILE,
    checkpoint_path,
    find_checkpoint,
    finish_checkpoint,
    partial_path,
    remove_older,
    sync,
)
from .companion import Companion, Stateful
from .interruption import Interrupted, Interruption
from .loss_watch import BadStep, StepWatch, list_names
from .output_folder import cut_log, open_output_folder
from .processes import decided_by_main, done_by_all
from .record import TrainingRecord
from .resuming import describe_run, refuse_other_run, warn_of_changes
from .sharding import AveragedWeights
from .state_files import load_states, save_states

RELEASE_SECONDS = 0.5


class RunState:
    """What `TrainingRun` holds, with the means to write it to disk, to read it again and to end before the end.

    Attributes:
        step: optimizer steps made.
    """

    accelerator: Accelerator
    args: TrainingArguments
    step: int
    output_dir: Path
    model: Any
    optimizer: Any
    ema: AveragedWeights
    record: TrainingRecord
    _companion: Companion | None
    _interruption: Interruption
    _lock: ExitStack
    _model_class: type
    _progress: tqdm
    _rows: int
    _rows_after_step: int
    _samples_seen: int
    _saved_step: int
    _resumed_step: int
    _states: dict[str, Stateful]
    _watch: StepWatch

    @property
    def unwrapped_model(self) -> Any:
        """The model without the wrapper of a distributed setup."""
        return self.accelerator.unwrap_model(self.model)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Context of a validation, on all processes: a signal ends the run after it or, in a single process, at once.

        A validation that was cut short, or came after the checkpoint that a run goes on from, is made up for then; see
        `validation_missed`.

        Raises:
            SystemExit: after a signal.
        """
        try:
            with self._interruption.raised(self.accelerator.num_processes == 1):
                yield
        except Interrupted:
            pass
        (number,) = self._highest_of_all(torch.tensor(self._interruption.number))
        if number:
            self._watch.restore()  # the state of the random numbers is that of before the validation again
            self._leave(int(number))

    def require_finite(self, loss: torch.Tensor) -> None:
        """Stops the run, as `optimize` does, if a loss is NaN or infinite: for what learns before `optimize` is called.

        Args:
            loss: scalar; of all processes.

        Raises:
            ValueError: on all processes, see `optimize`.
        """
        (worst,) = self._highest_of_all(~torch.isfinite(loss.detach()))
        if worst:
            self._watch.note_loss(loss)
            self._stop_at_bad_step("loss")

    def save_checkpoint(self) -> None:
        """Writes the whole state under a temporary name, renames it, and removes the oldest beyond the limit.

        An old one that cannot be removed is named on stderr and left.

        Raises:
            OSError: on all processes, if one cannot write, e.g. because the disk is full; earlier checkpoints stay.
        """
        path = checkpoint_path(self.output_dir, self.step)
        temporary = partial_path(path)
        states = {name: state.state_dict() for name, state in self._states.items()}
        try:
            done_by_all(self.accelerator, partial(self.accelerator.save_state, str(temporary)))
            done_by_all(self.accelerator, partial(self._finish_checkpoint, temporary, path, states))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.accelerator.wait_for_everyone()  # or one that tries again would write into what another removes
            raise OSError(f"{path} could not be written ({error}); earlier checkpoints are intact") from error
        self._saved_step = self.step
        if self.accelerator.is_main_process:
            remove_older(path, self.args.checkpoints_total_limit)

    def end(self) -> None:
        """Closes progress bar and trackers and gives the folder free, once all processes have come here."""
        self._progress.close()
        self.accelerator.wait_for_everyone()
        self._interruption.release()
        self._lock.close()
        self.accelerator.end_training()
        if self.accelerator.num_processes > 1:
            # Gloo's threads take the interpreter's lock to let go of their last tensors. The distributed wrapper, when
            # it dies with the caller's frame, holds that lock and waits for the threads: both wait for ever. Sleeping
            # hands the lock over before.
            time.sleep(RELEASE_SECONDS)

    def _occupy_folder(self) -> None:
        self._lock.enter_context(exclusive(self.output_dir))
        open_output_folder(self.args)

    def _resume(self, which: str) -> None:
        own, accelerator = self._description(), self.accelerator
        path = decided_by_main(
            accelerator, lambda: find_checkpoint(self.output_dir, which, partial(refuse_other_run, own=own))
        )
        if path is None:
            accelerator.print(f"{self.output_dir} holds no checkpoint yet: starting from step 0")
            return
        info = json.loads((path / CHECKPOINT_INFO).read_text(encoding="utf-8"))
        accelerator.load_state(str(path))
        for name, state in load_states(path).items():
            self._states[name].load_state_dict(state)
        self.ema.to(accelerator.device)  # states are loaded onto the CPU
        self.step = self._resumed_step = info["step"]
        # A checkpoint that lies elsewhere is none that this folder could be resumed from.
        self._saved_step = self.step if path.resolve().parent == self.output_dir.resolve() else 0
        self._samples_seen = info["samples_seen"]
        self.record.restore(info["record"])
        if accelerator.is_main_process:
            warn_of_changes(path, info, own, accelerator.num_processes)
            self._rows = self._rows_after_step = cut_log(self.output_dir / LOG_FILE, info["log_rows"], self.step)
        accelerator.print(f"resumed from {path.name} (step {self.step})")

    def _description(self) -> dict[str, Any]:
        settings = {} if self._companion is None else self._companion.settings
        return describe_run(self.unwrapped_model, self._model_class, settings)

    def _finish_checkpoint(self, temporary: Path, path: Path, states: dict[str, Any]) -> None:
        """The main process's last part of a checkpoint, once all processes have written theirs."""
        if self.accelerator.is_main_process:
            save_states(states, temporary)
            sync(self.output_dir / LOG_FILE)
            finish_checkpoint(temporary, path, self._checkpoint_info())

    def _checkpoint_info(self) -> dict[str, Any]:
        return {
            **self._description(),
            "step": self.step,
            "samples_seen": self._samples_seen,
            "log_rows": self._rows_after_step,
            "num_processes": self.accelerator.num_processes,
            "record": self.record.state(),
        }

    def _require_finite_step(self, norm: Any) -> int:
        """Raises if losses or gradients since the last step are not finite; else the signal that has come, or 0."""
        counts = self.accelerator.scaler is None and norm is not None  # a scaler finds the right scale by overflowing
        bad_norm = ~torch.isfinite(torch.as_tensor(norm)) if counts else torch.tensor(False)
        signals = torch.tensor(self._interruption.number)
        bad_loss, bad_gradient, number = self._highest_of_all(self._watch.any_bad(), bad_norm, signals)
        if bad_loss or bad_gradient:
            self._stop_at_bad_step("loss" if bad_loss else "gradient")
        return int(number)

    def _highest_of_all(self, *values: torch.Tensor) -> list[float]:
        """Maximum over processes of each scalar; the host waits for the device once."""
        joined = torch.stack([value.to(self.accelerator.device).float() for value in values])
        return self.accelerator.gather(joined[None]).amax(dim=0).tolist()

    def _stop_at_bad_step(self, what: str) -> None:
        """Goes back to before the step, saves that state unless there is a checkpoint of it, and raises."""
        names = gather_object(self._watch.bad_samples(every=what == "gradient"))
        values = [value for value in gather_object([self._watch.bad_loss()]) if value]
        self._watch.restore()
        self.optimizer.zero_grad()
        # The companion has made its step already when a gradient is found to be infinite.
        is_whole = what == "loss" or self._companion is None
        if is_whole and self.step > self._saved_step:
            self.save_checkpoint()
        kept = checkpoint_path(self.output_dir, self._saved_step).name
        nothing = "No checkpoint had been written yet" if self.step else "No step had been made yet"
        self.end()
        raise BadStep(
            f"the {what} became {values[0] if values else 'NaN or infinite'} at step {self.step + 1}, in the batch of "
            f"{list_names(names)}; look at these data or lower --learning_rate. "
            + (f"{kept} was kept: --resume_from_checkpoint {kept}" if self._saved_step else nothing)
        )

    def _leave(self, number: int) -> None:
        """Ends the run for a signal, with a checkpoint of the last step."""
        if self.step > self._saved_step:
            self.save_checkpoint()
        self._progress.close()  # or the line would follow the bar's
        if self.accelerator.is_main_process:
            print(
                f"{signal.Signals(number).name}: stopped after step {self.step}; "
                f"{checkpoint_path(self.output_dir, self.step)} is written. Go on with --resume_from_checkpoint latest",
                file=sys.stderr,
            )
        self.end()
        raise SystemExit(128 + number)
