"""Paired data sets of volumes and views, and the radiographs and cohorts they are made of."""

from .cohort import CohortConfig
from .paired import PairedDataset
from .radiographs import line_integrals, render_views

__all__ = ["CohortConfig", "PairedDataset", "line_integrals", "render_views"]
