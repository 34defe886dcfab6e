"""Paired data sets of volumes and views, the scans and cohorts they are made of, radiographs, and labelled images."""

from ..processors.radiographs import BeamGeometry, line_integrals, render_views
from .cohort import CohortConfig
from .description import describe_data
from .dicom import DicomSeries, find_series, read_series
from .images import ImageDataset, make_image_processor
from .paired import PairedDataset
from .preparation import PreparationConfig, PreparedVolume, prepare_volume
from .splits import MissingSplitError

__all__ = [
    "BeamGeometry",
    "CohortConfig",
    "DicomSeries",
    "ImageDataset",
    "MissingSplitError",
    "PairedDataset",
    "PreparationConfig",
    "PreparedVolume",
    "describe_data",
    "find_series",
    "line_integrals",
    "make_image_processor",
    "prepare_volume",
    "read_series",
    "render_views",
]
