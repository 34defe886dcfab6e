"""Random numbers of a training: each sample has its own, whichever process and part of the batch it comes in."""

import hashlib

import torch


def draw_generator(seed: int, name: str, number: int) -> torch.Generator:
    """CPU generator that no other name or number shares.

    Args:
        seed: of the run.
        name: what is drawn for, such as `"sample"`.
        number: which of them.
    """
    digest = hashlib.blake2b(f"{seed} {name} {number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
