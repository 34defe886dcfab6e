"""What a tokenizer is trained for: reconstruction, codes and, where asked for, looks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models import VQTokenizerConfig
from .adversarial import Adversary, DiscriminatorConfig, adaptive_weight, last_layer_weight
from .arguments import TrainingArguments, check_fields
from .perceptual import PerceptualLoss
from .run import TrainingRun

LOGGED = ("reconstruction_loss", "commitment_loss", "codebook_loss", "perplexity", "active_fraction")


@dataclass
class ObjectiveArguments(TrainingArguments):
    """Flags of the losses beyond reconstruction and codes."""

    adversarial_weight: float = field(
        default=0.0, metadata={"help": "Factor of the adversarial loss beside the adaptive one; 0: no discriminator."}
    )
    perceptual_model: str | None = field(
        default=None, metadata={"help": "Perceptual loss: folder or Hub id of a pretrained backbone; none without."}
    )
    perceptual_weight: float = field(default=1.0, metadata={"help": "Factor of the perceptual loss."})
    perceptual_slices: int = field(default=4, metadata={"help": "Perceptual loss: slices of a volume along each axis."})
    discriminator: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of the discriminator."})


class TokenizerObjective:
    """The losses of a tokenizer's training; with only the defaults, what the model itself returns.

    Args:
        args: the script's flags.
        config: of the tokenizer.
        value_range: lowest and highest value of the processor's output.
        device: where the perceptual loss is computed.

    Attributes:
        adversary: the discriminator, to be given to the `TrainingRun` as its companion; `None` without one.
        perceptual: the perceptual loss; `None` without one.

    Raises:
        ValueError: if a flag is out of range or unknown.
        ImportError: if there is a discriminator, but no MONAI.
    """

    def __init__(
        self,
        args: ObjectiveArguments,
        config: VQTokenizerConfig,
        value_range: tuple[float, float],
        device: torch.device,
    ) -> None:
        for name in ("adversarial_weight", "perceptual_weight"):
            if getattr(args, name) < 0:
                raise ValueError(f"--{name} must be at least 0; got {getattr(args, name)}")
        check_fields(args.discriminator, DiscriminatorConfig, "--discriminator")
        settings = DiscriminatorConfig(**args.discriminator)
        self._adversarial_weight, self._perceptual_weight = args.adversarial_weight, args.perceptual_weight
        self.adversary = Adversary(settings, config, args, value_range[0]) if args.adversarial_weight else None
        self.perceptual: PerceptualLoss | None = None
        if args.perceptual_model:
            self.perceptual = PerceptualLoss(args.perceptual_model, value_range, args.perceptual_slices).to(device)

    def __call__(
        self, training: TrainingRun, output: Any, images: torch.Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss to give to `TrainingRun.optimize`, and figures to log; the discriminator takes its step before.

        Args:
            training: the run; this is called inside its `accumulate`.
            output: `VQTokenizerOutput` of the tokenizer for `images`.
            images: `(B, C, *spatial)`.
            generators: CPU generators, one for each image.
        """
        figures = {name: output[name] for name in LOGGED}
        loss, reconstruction = output.loss, output.reconstruction_loss
        if self.perceptual is not None:
            with training.accelerator.autocast():
                distance = self.perceptual(output.sample, images, training.step_generator())
            figures["perceptual_loss"] = distance
            loss, reconstruction = (term + self._perceptual_weight * distance for term in (loss, reconstruction))
        if self.adversary is None or not self.adversary.is_active(training.step, images):
            return loss, figures
        training.require_finite(loss)  # before the discriminator learns from it
        figures |= self.adversary.step(images, output.sample, generators)
        adversarial = self.adversary.generator_loss(output.sample, generators)
        last_layer = last_layer_weight(training.unwrapped_model)
        factor = adaptive_weight(reconstruction, adversarial, last_layer, self.adversary.config.weight_max)
        figures |= {"adversarial_loss": adversarial, "adaptive_weight": factor}
        return loss + self._adversarial_weight * factor * adversarial, figures
