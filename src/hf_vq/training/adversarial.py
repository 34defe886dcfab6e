"""A patch discriminator beside a tokenizer: its losses, its optimizer and the weight of its verdict (VQGAN)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import nn

from ..models import VQTokenizer, VQTokenizerConfig
from ..quantizers.distributed import average_over_processes
from ..quantizers.fields import require, require_type
from .adversarial_augmentation import AUGMENTATIONS, DifferentiableAugmentation
from .arguments import TrainingArguments

NORM_GROUPS = 8
ADAPTIVE_EPSILON = 1e-6


@dataclass
class DiscriminatorConfig:
    """The discriminator of a tokenizer's training, and how it is trained.

    Args:
        channels: width of its first layer, doubled by each further one; a multiple of 4.
        num_layers: layers behind the first one; each but the last halves the resolution, as the first one does. A
            verdict sees some 34, 70 or 142 elements of a side with 2, 3 or 4.
        learning_rate: of its optimizer, on the schedule of the tokenizer's.
        adam_beta1: Adam's first decay.
        adam_beta2: Adam's second decay.
        start_step: optimizer step of the tokenizer from which on it is trained and heard.
        weight_max: upper bound of the adaptive weight.
        augmentation: names of `DifferentiableAugmentation`; empty for none.

    Raises:
        ValueError: if a field is out of range.
    """

    channels: int = 64
    num_layers: int = 3
    learning_rate: float = 1e-4
    adam_beta1: float = 0.5
    adam_beta2: float = 0.9
    start_step: int = 0
    weight_max: float = 1e4
    augmentation: Sequence[str] = ("translation", "cutout")

    def __post_init__(self) -> None:
        def check(name: str, is_right: bool, expected: str) -> None:
            require(is_right, f"discriminator.{name}", getattr(self, name), expected)

        for field in fields(self):
            if field.name != "augmentation":
                require_type(f"discriminator.{field.name}", getattr(self, field.name), field.type)
        check("channels", self.channels >= 4 and self.channels % 4 == 0, "a multiple of 4")
        check("num_layers", self.num_layers >= 1, "at least 1")
        check("start_step", self.start_step >= 0, "at least 0")
        check("learning_rate", self.learning_rate > 0, "above 0")
        check("weight_max", self.weight_max >= 0, "at least 0")
        for name in ("adam_beta1", "adam_beta2"):
            check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        names = list(AUGMENTATIONS)
        is_known = isinstance(self.augmentation, (list, tuple)) and all(name in names for name in self.augmentation)
        check("augmentation", is_known, f"a list of names among {names}")


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of images or volumes: the logits of MONAI's `PatchDiscriminator` (Isola et al., 2017).

    Its normalisation is over groups of channels of one sample: a verdict depends neither on the rest of the batch nor
    on what was judged before, so batches of 1 and several processes need no care.

    Args:
        config: its size.
        spatial_dims: 2 or 3.
        in_channels: channels of what it judges.

    Raises:
        ImportError: if MONAI is not installed.
    """

    def __init__(self, config: DiscriminatorConfig, spatial_dims: int, in_channels: int) -> None:
        super().__init__()
        try:
            from monai.networks.nets import patchgan_discriminator
        except ImportError as error:
            raise ImportError("the discriminator needs monai: pip install hf-vq[medical]") from error
        self.least_side = 3 * 2**config.num_layers  # of which the last two layers leave one verdict
        self.num_layers = config.num_layers
        self.network = patchgan_discriminator.PatchDiscriminator(
            spatial_dims=spatial_dims,
            channels=config.channels,
            in_channels=in_channels,
            num_layers_d=config.num_layers,
            norm=("GROUP", {"num_groups": NORM_GROUPS}),
        )

    def check_input(self, images: torch.Tensor) -> None:
        """Raises a ValueError if `images` `(B, C, *spatial)` are too small for the layers."""
        if min(images.shape[2:]) < self.least_side:
            raise ValueError(
                f"discriminator.num_layers={self.num_layers} needs sides of at least {self.least_side}; got "
                f"{tuple(images.shape[2:])}. Lower --discriminator.num_layers."
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, in_channels, *spatial)` -> logits `(B, 1, *patches)`, high for what looks real."""
        return self.network(images)[-1]


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    r"""The discriminator's loss, scalar: \(\frac12 (E[\max(0, 1 - D(x))] + E[\max(0, 1 + D(\hat x))])\) (Lim & Ye,
    2017)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, weight: torch.Tensor, maximum: float
) -> torch.Tensor:
    r"""How much the adversarial loss must be scaled so that both losses pull the last layer equally (VQGAN, eq. 7).

    \(\lambda = \|\nabla_w L_{rec}\| / (\|\nabla_w L_{adv}\| + 10^{-6})\), at most `maximum`. On several processes the
    gradients are those of the joined batch.

    Args:
        reconstruction_loss: scalar; its graph is kept.
        adversarial_loss: scalar; its graph is kept.
        weight: w, weight of the decoder's last layer.
        maximum: upper bound.

    Returns:
        Scalar without a graph.
    """
    norms = [
        average_over_processes(torch.autograd.grad(loss, weight, retain_graph=True)[0].float()).norm()
        for loss in (reconstruction_loss, adversarial_loss)
    ]
    return (norms[0] / (norms[1] + ADAPTIVE_EPSILON)).clamp(max=maximum)


def last_layer_weight(model: VQTokenizer) -> torch.Tensor:
    """Weight of the convolution that writes a tokenizer's reconstruction."""
    convolutions = [module for module in model.decoder.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    return convolutions[-1].weight


class Adversary:
    """The discriminator of a training with its optimizer, schedule and augmentation.

    A `Companion` of a `TrainingRun`, which saves and restores it. Random numbers come from the generators that it is
    given, so there is no state of them to save.

    Args:
        config: the discriminator.
        model_config: of the tokenizer whose reconstructions it judges.
        args: the script's flags, for the schedule.
        fill: value of air or black, see `DifferentiableAugmentation`.

    Raises:
        ImportError: if MONAI is not installed.
        ValueError: with `mixed_precision="fp16"`, which would scale the gradients of two losses by one factor.
    """

    def __init__(
        self, config: DiscriminatorConfig, model_config: VQTokenizerConfig, args: TrainingArguments, fill: float
    ) -> None:
        if args.mixed_precision == "fp16":
            raise ValueError("a discriminator is not trained with --mixed_precision fp16; choose bf16 or no")
        self.config, self._max_grad_norm = config, args.max_grad_norm
        self.augment = DifferentiableAugmentation(config.augmentation, fill)
        self.model: nn.Module = PatchDiscriminator(config, model_config.spatial_dims, model_config.in_channels)
        self.optimizer: Any = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2)
        )
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler,
            self.optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=max(1, args.max_train_steps - config.start_step),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint and the training that resumes from it must agree on."""
        return {"discriminator": {**asdict(self.config), "augmentation": list(self.config.augmentation)}}

    def prepare(self, accelerator: Accelerator) -> None:
        """Makes it part of a run: device, processes, mixed precision, checkpoints."""
        self._accelerator = accelerator
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        self.model.train()

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps besides network and optimizer."""
        return {"discriminator_lr_scheduler": self.lr_scheduler}

    def is_active(self, step: int, images: torch.Tensor) -> bool:
        """True from the start step on. Images that are too small are refused before, too."""
        self._accelerator.unwrap_model(self.model).check_input(images)
        return step >= self.config.start_step

    def step(
        self, real: torch.Tensor, fake: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator]
    ) -> dict[str, torch.Tensor]:
        """Trains the discriminator on one batch; call it inside `TrainingRun.accumulate`.

        Args:
            real: `(B, C, *spatial)`.
            fake: reconstructions of them, same shape; no gradient flows into them.
            generator: of the augmentation, which is the same for both; one or a list of one per sample.

        Returns:
            Figures to log.

        Raises:
            ValueError: if its loss is NaN or infinite.
        """
        images = torch.cat(self.augment(generator, real, fake.detach()))
        real_logits, fake_logits = self.model(images).float().chunk(2)
        loss = hinge_loss(real_logits, fake_logits)
        if not torch.isfinite(loss):
            raise ValueError(f"the discriminator's loss became {loss.item()}; lower --discriminator.learning_rate")
        self._accelerator.backward(loss)
        if self._accelerator.sync_gradients:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._accelerator.sync_gradients:
            self.lr_scheduler.step()
        return {
            "discriminator_loss": loss.detach(),
            "real_logits": real_logits.detach().mean(),
            "fake_logits": fake_logits.detach().mean(),
        }

    def generator_loss(
        self, fake: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator]
    ) -> torch.Tensor:
        r"""The tokenizer's loss \(-E[D(\hat x)]\), scalar, with a gradient to `fake` and none to the discriminator.

        The discriminator's graph lives only as long as this call: what stays is its gradient at `fake`, so going
        through the loss twice (for the adaptive weight, and for training) costs one pass through the discriminator.

        Args:
            fake: `(B, C, *spatial)` reconstructions with their graph.
            generator: of the augmentation, one or a list of one per sample.
        """
        point = fake.detach().requires_grad_()
        (seen,) = self.augment(generator, point)
        value = -self._accelerator.unwrap_model(self.model)(seen).float().mean()
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach() + ((fake - point.detach()) * gradient).sum()
