"""Sends a volume or an image through a trained tokenizer and writes what comes back.

    python scripts/reconstruct.py --tokenizer volume-tokenizer --input scan.nii.gz --output reconstruction.nii.gz
    python scripts/reconstruct.py --tokenizer pipeline --input frontal.png --output reconstruction.png

The same as `hf-vq reconstruct`, whose flags and files `--help` describes.
"""

from hf_vq.commands.reconstruct import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
