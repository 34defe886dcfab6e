"""Processors between scans and images on disk and model tensors."""

from .geometry import VIEW_AXES, VOLUME_AXES, VolumeGeometry
from .image_processing_ct_volume import CTVolumeProcessor
from .image_processing_xray import XrayImageProcessor

__all__ = ["VIEW_AXES", "VOLUME_AXES", "CTVolumeProcessor", "VolumeGeometry", "XrayImageProcessor"]
