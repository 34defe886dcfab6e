"""Generates volumes for every subject of a split with a trained pipeline.

    python scripts/generate.py --pipeline pipeline --data cohort --split test --num_volumes_per_prompt 8 --output_dir
    generated

Writes `<subject>_<sample>.nii.gz` and `metadata.csv` (file_name, subject, sample). With `--shuffle_views` each subject
gets the views of the next one: the control that tells whether a model reads its views.
"""

import argparse
import csv

import torch
from tqdm.auto import tqdm

from hf_vq import ViewsToVolumePipeline
from hf_vq.data import PairedDataset
from hf_vq.files import atomic_directory
from hf_vq.training.arguments import run


def main() -> None:
    """Parse, build, loop, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub id of a ViewsToVolumePipeline")
    parser.add_argument("--data", required=True, help="paired folder or data set id")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_volumes_per_prompt", type=int, default=1, help="volumes for each subject")
    parser.add_argument("--num_inference_steps", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=4, help="subjects at a time")
    parser.add_argument("--shuffle_views", action="store_true", help="give each subject the next one's views")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what output_dir holds")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = ViewsToVolumePipeline.from_pretrained(args.pipeline).to(device)
    pipeline.set_progress_bar_config(disable=True)
    dataset = PairedDataset(args.data, args.split)
    rows = []
    with atomic_directory(args.output_dir, overwrite=args.overwrite) as temporary:
        for start in tqdm(range(0, len(dataset), args.batch_size), desc="generate"):
            subjects = range(start, min(start + args.batch_size, len(dataset)))
            shown = [(index + args.shuffle_views) % len(dataset) for index in subjects]
            views = {name: [dataset.view_image(i, name) for i in shown] for name in pipeline.transformer.view_names}
            # One generator per volume, so that a volume does not depend on the batch size.
            generators = [
                torch.Generator().manual_seed(args.seed + index * args.num_volumes_per_prompt + sample)
                for index in subjects
                for sample in range(args.num_volumes_per_prompt)
            ]
            volumes = pipeline(
                views,
                num_inference_steps=args.num_inference_steps,
                num_volumes_per_prompt=args.num_volumes_per_prompt,
                temperature=args.temperature,
                top_p=args.top_p,
                generator=generators,
                output_type="nifti",
            ).volumes
            for number, volume in enumerate(volumes):
                subject = dataset.subjects[start + number // args.num_volumes_per_prompt]
                sample = number % args.num_volumes_per_prompt
                name = f"{subject}_{sample}.nii.gz"
                volume.to_filename(temporary / name)
                rows.append({"file_name": name, "subject": subject, "sample": sample})
        with (temporary / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["file_name", "subject", "sample"])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    run(main)
