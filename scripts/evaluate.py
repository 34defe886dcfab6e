"""Scores generated volumes against the true ones, beside trivial baselines and a control with shuffled views.

    python scripts/evaluate.py --data cohort --split test --generated generated --output_dir evaluation
    python scripts/evaluate.py --data cohort --split test --generated generated --shuffled generated-shuffled \\
        --pipeline pipeline --output_dir evaluation

The same as `hf-vq evaluate`, whose flags and files `--help` describes; docs/evaluation.md defines every figure.
"""

from hf_vq.commands.evaluate import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(main)
