"""Generates images with a trained `CodeGenerationPipeline`, for class labels or without.

    python scripts/generate_images.py --pipeline pipeline --num_images 5000 --output_dir generated
    python scripts/generate_images.py --pipeline pipeline --num_images 100 --class_labels Sneaker Bag \\
        --guidance_scale 2 --output_dir sneakers-and-bags

The same as `hf-vq generate-images`, whose flags and files `--help` describes.
"""

from hf_vq.commands.generate_images import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
