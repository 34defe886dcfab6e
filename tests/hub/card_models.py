"""Tiny models of every kind that there are cards for, with real records and metrics, for tests of cards."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hf_vq import (
    AbsorbingScheduler,
    CodeGenerationPipeline,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQForImageClassification,
    VQImageClassifierConfig,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)
from hf_vq.data import describe_data, make_image_processor
from hf_vq.evaluation import EvaluationSettings, GenerationSettings, ProgramSettings, build_report, generation_report
from hf_vq.evaluation.report import (
    BASELINE_ROWS,
    METRIC_LABELS,
    ROW_CEILING,
    ROW_MEAN_OF_SAMPLES,
    ROW_ONE_SAMPLE,
    ROW_SHUFFLED,
    ROW_TRUE_VOLUME,
)
from hf_vq.evaluation.sampling_record import read_sampling, write_sampling
from hf_vq.training.run import TrainingRun, make_accelerator
from hf_vq.training.tokenizer_objective import ObjectiveArguments

KINDS = ("volume_tokenizer", "view_tokenizer", "image_tokenizer", "classifier", "views_to_volume", "code_generation")
SIDE, NUM_CODES = 8, 11
TOKENIZER: dict[str, Any] = {
    "base_channels": 8,
    "channel_multipliers": [1],
    "stem_stride": 4,
    "num_res_blocks": 1,
    "num_norm_groups": 4,
    "quantizer": {"codebook_size": NUM_CODES, "codebook_dim": 3},
}
SCAN = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"
SUBJECTS = ("patient_smith", "patient_jones", "patient_brown")


def tokenizer(dims: int) -> VQTokenizer:
    return VQTokenizer(VQTokenizerConfig(spatial_dims=dims, **TOKENIZER)).eval()


def transformer(dims: int, **fields: Any) -> CodeTransformer:
    sizes = {"num_codes": NUM_CODES, "code_grid": (SIDE // 4,) * dims, "hidden_size": 16, "num_layers": 1}
    return CodeTransformer(**{**sizes, "num_heads": 2, **fields}).eval()


def save_model(kind: str, folder: Path) -> Path:
    """Saves an untrained model of a kind and returns its folder."""
    torch.manual_seed(0)
    volumes = CTVolumeProcessor(size=[SIDE] * 3, spacing=[4.0] * 3)
    views = XrayImageProcessor(size={"height": SIDE, "width": SIDE}, views_rendered=True)
    if kind == "volume_tokenizer":
        parts = [tokenizer(3), volumes]
    elif kind == "view_tokenizer":
        parts = [tokenizer(2), views]
    elif kind == "image_tokenizer":
        parts = [tokenizer(2), make_image_processor(SIDE, channels=1)]
    elif kind == "classifier":
        network = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
        names = {0: "cat", 1: "dog | wolf"}
        config = VQImageClassifierConfig(
            backbone="resnet", backbone_config=network, image_size=SIDE, id2label=names, quantizer={"codebook_size": 8}
        )
        parts = [VQForImageClassification(config), make_image_processor(SIDE)]
    elif kind == "views_to_volume":
        conditional = transformer(3, context_dim=3, context_grid=(SIDE // 4,) * 2)
        scheduler = AbsorbingScheduler(NUM_CODES, sampling="confidence")
        parts = [ViewsToVolumePipeline(tokenizer(3), tokenizer(2), conditional, scheduler, volumes, views)]
    else:
        labelled = transformer(2, context_dim=None, num_classes=2, label_dropout=0.1, id2label={0: "cat", 1: "dog"})
        parts = [CodeGenerationPipeline(tokenizer(2), labelled, AbsorbingScheduler(NUM_CODES))]
    for part in parts:
        part.save_pretrained(folder)
    return folder


def write_cohort_record(folder: Path) -> Path:
    """What prepare_cohort.py leaves beside the splits."""
    folder.mkdir(parents=True)
    settings = {"size": SIDE, "field_of_view": 4.0 * SIDE, "image_size": SIDE, "seed": 7, "views": ["frontal"]}
    counts = {"train": 5, "validation": 3, "test": 3}
    record = {"scan": "smith.nii.gz", "sha256": SCAN, "subjects": counts, "settings": settings}
    (folder / "cohort.json").write_text(json.dumps(record))
    return folder


def write_training(folder: Path, data: Path, **parts: Any) -> dict[str, Any]:
    """Begins a training, notes a validation, and leaves its record in a folder; returns it."""
    args = ObjectiveArguments(
        data=str(data),
        output_dir=str(folder.parent / f"{folder.name}-run"),
        max_train_steps=40,
        train_batch_size=3,
        learning_rate=0.002,
        seed=5,
        perceptual_model=str(data.parent / "resnet"),
    )
    training = TrainingRun(make_accelerator(args), tokenizer(2), args)
    training.dataloader(torch.zeros(17, 1))  # type: ignore[arg-type]
    training.log({"loss": 0.5})
    training.log({"validation_psnr": 23.456789, "validation_perplexity": 9.87654})
    training.save_record(folder, **parts)
    training.end()
    record: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return record


def write_volume_metrics(folder: Path, data: Path) -> Path:
    """What evaluate.py writes, of scores drawn at random."""
    random = np.random.default_rng(0)

    def scores(*names: str) -> list[dict[str, float]]:
        return [{name: float(random.uniform(1, 30)) for name in names} for _ in SUBJECTS]

    rows = {name: scores(*METRIC_LABELS) for name in (ROW_ONE_SAMPLE, ROW_MEAN_OF_SAMPLES.format(count=4))}
    rows |= {name: scores(*METRIC_LABELS) for name in (ROW_SHUFFLED, *BASELINE_ROWS, ROW_CEILING)}
    rows[ROW_TRUE_VOLUME] = scores("reprojection")
    generated = folder / "generated"
    write_samples(generated)
    program = ProgramSettings("", str(generated), 4, sampling=read_sampling(generated))
    settings = EvaluationSettings(
        data=str(data),
        split="test",
        window=(-1000.0, 1000.0),
        num_subjects=len(SUBJECTS),
        num_samples=4,
        seed=3,
        generated=str(generated),
        num_resamples=20,
        programs=(program,),
        data_facts=describe_data(data),
    )
    usage = {"test": {"codes_used": 9, "codebook_size": NUM_CODES, "used_fraction": 9 / NUM_CODES, "perplexity": 7.31}}
    notes = [
        f"The generated folder has no volumes of 1 of 4 subjects ({SUBJECTS[0]}).",
        f"All voxels of `{generated}` lie close together.",
    ]
    features = {"features": f"encoder outputs; of `{folder / 'pipeline'}`", "rows": {}, "left_out": []}
    report = build_report(settings, SUBJECTS, rows, distribution=features, codebook=usage, notes=notes)
    return write_json(folder / "metrics.json", report)


def write_samples(folder: Path) -> None:
    """How samples were drawn, as the commands that generate write it."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = SimpleNamespace(scheduler=AbsorbingScheduler(NUM_CODES, sampling="confidence"))
    flags = {"num_inference_steps": 32, "temperature": 0.9, "top_p": 1.0, "guidance_scale": 1.0, "seed": 2}
    write_sampling(folder, pipeline, SimpleNamespace(**flags))  # type: ignore[arg-type]


def write_image_metrics(folder: Path, data: Path) -> Path:
    """What evaluate_images.py writes, of made-up scores."""
    write_samples(folder / "generated")
    settings = GenerationSettings(
        data=str(data),
        split="test",
        classifier=f"a ViT of {folder / 'classifier'}",
        classifier_accuracy=0.91,
        num_features=8,
        num_images=100,
        seed=6,
        tokenizer=str(folder / "tokenizer"),
        generated={"generated": read_sampling(folder / "generated")},
        data_facts=describe_data(data),
    )
    names = ("frechet", "density", "coverage", "precision", "recall", "label_agreement")
    rows = {
        row: {name: 0.1234 * (place + 1) + number for place, name in enumerate(names)}
        for number, row in enumerate(("training images (floor)", "reconstructed test images", "generated"))
    }
    return write_json(folder / "metrics.json", generation_report(settings, rows))


def write_test_figures(folder: Path) -> Path:
    """What train_classifier.py writes."""
    test = {"accuracy": 0.87654, "cross_entropy": 0.41239, "perplexity": 5.4321}
    return write_json(folder / "metrics.json", {"steps": 40, "test_samples": 123, "test": test})


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
