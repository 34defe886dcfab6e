"""Generates volumes for every subject of a split, or for one subject's images, with a trained pipeline.

    python scripts/generate.py --pipeline pipeline --data cohort --split test --num_volumes_per_prompt 8 \\
        --output_dir generated
    python scripts/generate.py --pipeline pipeline --views frontal=frontal.png lateral=lateral.png --output ct.nii.gz

The same as `hf-vq generate`, whose flags and files `--help` describes.
"""

from hf_vq.commands.generate import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
