"""Shows a codebook that collapses and one that does not: the same small network, trained twice on the same images.

    python scripts/demo_collapse.py --data /usr/share/datasets/fashion-mnist --output collapse.png

The first training uses plain vector quantisation, the second the default `VectorQuantizer`; weights, batches and steps
are the same. It prints PSNR, active codes and perplexity over the test images and draws one picture: usage in the
course of training, usage of each code at the end, test images and both reconstructions. A minute or two on two cores.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import trange

from hf_vq import CodebookUsage, VectorQuantizer
from hf_vq.data.images import ImageDataset
from hf_vq.evaluation.ablation_arms import PLAIN
from hf_vq.evaluation.optional import import_extra
from hf_vq.files import atomic_file
from hf_vq.training.arguments import run

PLAIN_WEIGHTS = {"commitment_weight": 0.25, "codebook_weight": 1.0}  # those of most published code
ARMS: dict[str, dict[str, Any]] = {"plain VQ": {**PLAIN, **PLAIN_WEIGHTS}, "hf_vq default": {}}
COLOURS = {"plain VQ": "#d9822b", "hf_vq default": "#1f6f8b"}
CODEBOOK_SIZE, CODEBOOK_DIM = 512, 16
BATCH_SIZE, LEARNING_RATE = 64, 2e-3
NUM_POINTS = 50  # of the curves of usage
NUM_SHOWN = 10
EVALUATION_BATCH = 500


class Autoencoder(nn.Module):
    """Images `(B, 1, H, W)` to a quarter of their sides, quantised, and back; H and W are multiples of 4."""

    def __init__(self, **quantizer: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, CODEBOOK_DIM, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CODEBOOK_DIM, 64, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
        )  # fmt: skip
        self.quantizer = VectorQuantizer(codebook_size=CODEBOOK_SIZE, codebook_dim=CODEBOOK_DIM, **quantizer)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Reconstructions, and what the quantizer returned."""
        quantized = self.quantizer(self.encoder(images))
        return self.decoder(quantized.quantized), quantized


@dataclass
class Result:
    """What one training leaves."""

    psnr: float
    usage: dict[str, float]
    counts: torch.Tensor
    reconstructions: torch.Tensor
    curve: list[tuple[int, float]] = field(default_factory=list)


def load(data: str, split: str) -> torch.Tensor:
    """Greyscale images in [0, 1], `(N, 1, H, W)`; raises ValueError for any others."""
    pixels = ImageDataset(data, split).pixels()
    if pixels.ndim != 3 or any(side % 4 for side in pixels.shape[1:]):
        raise ValueError(
            f"--data {data}: found images of shape {tuple(pixels.shape[1:])}, expected greyscale ones whose sides are "
            "multiples of 4, such as Fashion-MNIST"
        )
    return pixels.unsqueeze(1).float() / 255


@torch.no_grad()
def evaluate(model: Autoencoder, images: torch.Tensor) -> Result:
    """PSNR, mean over images, and usage of the codes."""
    model.eval()
    usage, errors, shown = CodebookUsage(CODEBOOK_SIZE), [], []
    for batch in images.split(EVALUATION_BATCH):
        sample, quantized = model(batch)
        usage.update(quantized.codes)
        errors.append((sample.clamp(0, 1) - batch).square().flatten(1).mean(dim=1))
        shown.append(sample[: NUM_SHOWN if not shown else 0].clamp(0, 1))
    model.train()
    psnr = float((-10 * torch.cat(errors).log10()).mean())
    return Result(psnr, usage.compute(), usage.counts[0], torch.cat(shown))


def train(name: str, train_images: torch.Tensor, test_images: torch.Tensor, steps: int, seed: int) -> Result:
    """Trains one network; the seed decides weights and batches."""
    torch.manual_seed(seed)
    model = Autoencoder(**ARMS[name])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for step in trange(steps, desc=name):
        images = train_images[torch.randint(len(train_images), (BATCH_SIZE,), generator=generator)]
        sample, quantized = model(images)
        loss = F.mse_loss(sample, images) + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // NUM_POINTS) == 0 or step == steps - 1:
            curve.append((step + 1, evaluate(model, test_images[:EVALUATION_BATCH]).usage["active_codes"]))
    result = evaluate(model, test_images)
    result.curve = curve
    return result


def draw(results: dict[str, Result], originals: torch.Tensor, path: str | Path) -> None:
    """The picture."""
    figure = import_extra("matplotlib.figure").Figure(figsize=(10, 6.6), dpi=120, layout="constrained")
    import_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 3.2))
    course, histogram = upper.subplots(1, 2)
    for name, result in results.items():
        style = {"color": COLOURS[name], "label": name}
        course.plot(*zip(*result.curve, strict=True), **style)
        histogram.plot(result.counts.sort(descending=True).values.clamp(min=0.5).numpy(), **style)
    course.set(xlabel="training step", ylabel=f"codes used by {EVALUATION_BATCH} test images", ylim=(0, CODEBOOK_SIZE))
    histogram.set(xlabel="codes, most used first", ylabel="uses in the test images (unused: 0.5)", yscale="log")
    course.legend(frameon=False)
    captions = {name: f"{name}\n{r.psnr:.1f} dB\n{r.usage['active_codes']} codes" for name, r in results.items()}
    rows = {"original": originals, **{captions[name]: result.reconstructions for name, result in results.items()}}
    for axes_row, (caption, images) in zip(lower.subplots(len(rows), len(originals)), rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, train twice, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="greyscale images, as ImageDataset")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="collapse.png")
    args = parser.parse_args(arguments)
    if args.steps < 1:
        raise ValueError(f"--steps: found {args.steps}, expected at least 1")
    import_extra("matplotlib")  # better to stop now than after the trainings
    train_images, test_images = load(args.data, "train"), load(args.data, "test")
    results = {}
    for name in ARMS:
        started = time.monotonic()
        results[name] = train(name, train_images, test_images, args.steps, args.seed)
        usage = results[name].usage
        print(
            f"{name}: PSNR {results[name].psnr:.2f} dB, {usage['active_codes']} of {CODEBOOK_SIZE} codes active, "
            f"perplexity {usage['perplexity']:.0f}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    draw(results, test_images[:NUM_SHOWN], args.output)
    print(f"picture: {args.output}")


if __name__ == "__main__":
    run(main)
