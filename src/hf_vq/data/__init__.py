"""Paired data sets of volumes and views, the radiographs and cohorts they are made of, and labelled images."""

from ..processors.radiographs import BeamGeometry, line_integrals, render_views
from .cohort import CohortConfig
from .images import ImageDataset, make_image_processor
from .paired import PairedDataset
from .splits import MissingSplitError

__all__ = [
    "BeamGeometry",
    "CohortConfig",
    "ImageDataset",
    "MissingSplitError",
    "PairedDataset",
    "line_integrals",
    "make_image_processor",
    "render_views",
]
