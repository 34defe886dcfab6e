"""Draws the codebook of a trained tokenizer or classifier on data: its usage, and where codes and outputs lie.

    python scripts/plot_codebook.py --model tokenizer --data /usr/share/datasets/fashion-mnist --output codebook.png
    python scripts/plot_codebook.py --model volume-tokenizer --data cohort --output codebook.png

Left, how often each code is chosen, most used first; right, encoder outputs and effective codes on the first two
principal components of the outputs. The title has the figures of the whole sample: what share of the variance
quantising loses, and how far the means and the spreads of outputs and codes are apart.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import AutoImageProcessor

from hf_vq import VectorQuantizer, VQForImageClassification, VQImageClassifierConfig
from hf_vq.data import ImageDataset, PairedDataset
from hf_vq.evaluation.codebook_plot import save_codebook_plot
from hf_vq.models import load_tokenizer, read_config
from hf_vq.training.arguments import run
from hf_vq.training.diagnostics import codebook_figures
from hf_vq.training.tokenizer_data import DATA_TYPES, TokenizerData


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a tokenizer or classifier")
    parser.add_argument("--data", required=True, help="paired or image folder, or data set id")
    parser.add_argument("--data_type", choices=DATA_TYPES, default="images", help="kind of --data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--num_samples", type=int, default=512, help="samples looked at, the first of the split")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--output", required=True, help="picture to write, .png or another format of matplotlib")
    return parser.parse_args(arguments)


def load_model(path: str) -> Any:
    """The model in eval mode.

    Raises:
        ValueError: if there is none, or its quantizer holds no codebook to draw.
    """
    if read_config(path).get("model_type") == VQImageClassifierConfig.model_type:
        model = VQForImageClassification.from_pretrained(path).eval()
    else:
        model = load_tokenizer(path)
    if not isinstance(model.quantizer, VectorQuantizer):
        raise ValueError(f"--model {path}: its quantizer is {type(model.quantizer).__name__}, which has no codebook")
    return model


def open_data(args: argparse.Namespace, spatial_dims: int) -> Dataset:
    """The split, processed as the model was trained."""
    processor: Any = AutoImageProcessor.from_pretrained(args.model, backend="pil")
    if args.data_type == "images":
        return ImageDataset(args.data, args.split, processor)
    if spatial_dims == 3:
        return PairedDataset(args.data, args.split, volume_processor=processor)
    return PairedDataset(args.data, args.split, view_processor=processor)


@torch.no_grad()
def main() -> None:
    """Parse, load, encode, draw."""
    args = parse_args()
    if args.num_samples < 1 or args.batch_size < 1:
        raise ValueError("--num_samples and --batch_size must be at least 1")
    model = load_model(args.model)
    dataset = open_data(args, getattr(model.config, "spatial_dims", 2))
    subset = Subset(dataset, range(min(args.num_samples, len(dataset))))  # type: ignore[arg-type]
    loader = DataLoader(subset, batch_size=args.batch_size)
    latents = torch.cat([model.encode_latents(TokenizerData.pixels_of(batch)) for batch in loader])
    figures = ", ".join(f"{name} {value:.3g}" for name, value in codebook_figures(model.quantizer, latents).items())
    save_codebook_plot(model.quantizer.inspect(latents), args.output, f"{len(subset)} of {args.split}: {figures}")
    print(f"{args.output}: {figures}")


if __name__ == "__main__":
    run(main)
