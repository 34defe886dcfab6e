"""Processors between scans and images on disk and model tensors, and radiographs rendered from volumes."""

from .geometry import VIEW_AXES, VOLUME_AXES, RadiographView, VolumeGeometry, view_axes
from .image_processing_ct_volume import CTVolumeProcessor
from .image_processing_xray import XrayImageProcessor
from .radiographs import BeamGeometry, line_integrals, render_views

__all__ = [
    "VIEW_AXES",
    "VOLUME_AXES",
    "BeamGeometry",
    "CTVolumeProcessor",
    "RadiographView",
    "VolumeGeometry",
    "XrayImageProcessor",
    "line_integrals",
    "render_views",
    "view_axes",
]
