"""Scores, trivial baselines, report tables and pictures of generated volumes and images (extra `eval`)."""

from .baselines import RidgeRegression, fit_ridge, mean_volume, nearest_subjects
from .bootstrap import SubjectBootstrap
from .generation import (
    FeatureNetwork,
    GenerationSettings,
    ImageSet,
    frechet_distance,
    generation_markdown,
    generation_report,
    generation_scores,
    independent_codes,
)
from .metrics import (
    mae_hu,
    mse,
    prdc,
    psnr_3d,
    psnr_slices,
    reprojection_error,
    ssim_3d,
    ssim_slices,
    volume_scores,
)
from .report import EvaluationSettings, ProgramSettings, build_report, summarize
from .report_text import per_subject_csv, report_markdown
from .sheets import SheetSubject, save_evaluation_sheet, save_reconstruction_sheet, save_sample_sheet

__all__ = [
    "EvaluationSettings",
    "FeatureNetwork",
    "GenerationSettings",
    "ImageSet",
    "ProgramSettings",
    "RidgeRegression",
    "SheetSubject",
    "SubjectBootstrap",
    "build_report",
    "fit_ridge",
    "frechet_distance",
    "generation_markdown",
    "generation_report",
    "generation_scores",
    "independent_codes",
    "mae_hu",
    "mean_volume",
    "mse",
    "nearest_subjects",
    "per_subject_csv",
    "prdc",
    "psnr_3d",
    "psnr_slices",
    "report_markdown",
    "reprojection_error",
    "save_evaluation_sheet",
    "save_reconstruction_sheet",
    "save_sample_sheet",
    "ssim_3d",
    "ssim_slices",
    "summarize",
    "volume_scores",
]
