"""Writes a tokenizer, a transformer or a whole pipeline as ONNX files and compares them with PyTorch.

    python scripts/export_onnx.py --model quickstart/pipeline --output_dir onnx
    python scripts/export_onnx.py --model user/tokenizer --size 64 64 64 --output_dir onnx

The files are run through onnxruntime on random inputs. A line for each output tells the largest difference, or how many
codes differ. A difference above 1e-4, or a code that no near tie explains, is an error; the files stay for a look at
them. docs/export.md describes the files. Needs the extra `onnx`: pip install hf-vq[onnx]
"""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hf_vq import CodeGenerationPipeline, CodeTransformer, ViewsToVolumePipeline
from hf_vq.exporting import OPSET, check_onnx, export_onnx
from hf_vq.models import load_tokenizer, read_config
from hf_vq.pipelines.loading import open_pipeline
from hf_vq.training.arguments import run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a tokenizer, a transformer or a pipeline")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--size", type=int, nargs="+", help="sides of a tokenizer's input (D H W or H W); they stay free by default"
    )
    parser.add_argument("--opset", type=int, default=OPSET, help="ONNX operator set, at least 18")
    parser.add_argument("--batch_size", type=int, default=3, help="size of the batch that is compared")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in output_dir")
    return parser.parse_args(arguments)


def load_model(source: str) -> Any:
    """What a folder or Hub id holds, in float32.

    Raises:
        ValueError: if it is no tokenizer, transformer or pipeline of this package.
    """
    try:
        found = DiffusionPipeline.load_config(source)["_class_name"]
    except (OSError, ValueError):
        found = None  # whatever is wrong, the readers of models say it better
    if found is not None:
        expected = CodeGenerationPipeline if found == CodeGenerationPipeline.__name__ else ViewsToVolumePipeline
        pipeline = open_pipeline(source, expected)
        return pipeline if pipeline.dtype == torch.float32 else pipeline.to(torch.float32)
    if read_config(source).get("_class_name") == CodeTransformer.__name__:
        return CodeTransformer.from_pretrained(source).float()
    return load_tokenizer(source).float()


def main() -> None:
    """Parse, load, write, compare."""
    args = parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it says that torchvision is missing, which nothing needs
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1; got {args.batch_size}")
    model = load_model(args.model)
    files = export_onnx(model, args.output_dir, args.size, args.opset, args.overwrite)
    print(f"{args.output_dir}: {len(files)} files, opset {args.opset}")
    results = check_onnx(model, args.output_dir, args.size, args.batch_size)
    print(*results, sep="\n")
    failed = [f"{result.file} {result.output}" for result in results if not result.passes]
    if failed:
        raise ValueError(f"the ONNX files differ from PyTorch in {', '.join(failed)}; do not use them")


if __name__ == "__main__":
    run(main)
