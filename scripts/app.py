"""A web page that generates CT volumes from X-rays and shows what a volume tokenizer keeps of a scan.

    python scripts/app.py --pipeline quickstart/pipeline --examples quickstart/cohort
    HF_VQ_PIPELINE=owner/pipeline python scripts/app.py --host 0.0.0.0 --port 7860

Needs `pip install hf-vq[app]`. This file alone is also the app.py of a Space: see docs/app.md.
"""

from hf_vq.app.server import main
from hf_vq.training.arguments import run

if __name__ == "__main__":
    run(lambda: main(description=__doc__))
