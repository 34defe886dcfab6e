"""Scores, trivial baselines, report tables and pictures of generated volumes and images (extra `eval`)."""

from .baselines import RidgeRegression, fit_ridge, mean_volume, nearest_subjects
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
from .report import EvaluationSettings, build_report, report_markdown, summarize
from .sheets import SheetSubject, save_evaluation_sheet, save_reconstruction_sheet, save_sample_sheet

__all__ = [
    "EvaluationSettings",
    "FeatureNetwork",
    "GenerationSettings",
    "ImageSet",
    "RidgeRegression",
    "SheetSubject",
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
