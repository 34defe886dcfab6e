"""What makes a training step fast without changing what it computes: the optimizer's kernel and compilation."""

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .arguments import TrainingArguments

# Compilers that torch looks for, in its order, where the variable CXX names none.
COMPILERS = ("g++", "gcc", "clang++", "clang")
FUSED_DEVICES = ("cpu", "cuda")


def make_adamw(groups: Sequence[dict[str, Any]], args: TrainingArguments, device: torch.device) -> torch.optim.AdamW:
    """AdamW, its whole step in one pass over the parameters where torch has a kernel for that.

    Args:
        groups: of parameters, see `parameter_groups`.
        args: rates and precision. With `fp16` the step is not fused: the gradient scaler could not tell skipped ones.
        device: where the training runs.
    """
    fused = device.type in FUSED_DEVICES and args.mixed_precision != "fp16"
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=fused or None)


def compile_parts(model: nn.Module, device: torch.device) -> None:
    """Compiles what does the work of a model, in place, on first use: a tokenizer's encoder and decoder, or the blocks
    of a transformer. Names of parameters, checkpoints and figures stay what they are up to rounding.

    Args:
        model: a `VQTokenizer` or `CodeTransformer`; of any other model, the whole.
        device: where the training runs.

    Raises:
        ValueError: if the machine lacks what `torch.compile` needs for this device.
    """
    _check_compiler(device)
    parts = [getattr(model, name) for name in ("encoder", "decoder") if hasattr(model, name)]
    parts = parts or list(getattr(model, "blocks", [])) or [model]
    for part in parts:
        part.compile()


def _check_compiler(device: torch.device) -> None:
    from torch._inductor import config  # only torch itself knows which compiler the environment names

    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError("--compile true needs Triton on this GPU, and none is installed; leave --compile out")
        return
    named = config.cpp.cxx
    wanted = [name for name in (named if isinstance(named, tuple) else (named,)) if name]
    if not any(shutil.which(name) for name in (*wanted, *COMPILERS)):
        raise ValueError(
            f"--compile true needs a C++ compiler, and none of {COMPILERS} is on the PATH; install one, name it in "
            "the environment variable CXX, or leave --compile out"
        )
