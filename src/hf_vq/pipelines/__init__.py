"""Pipelines: from views to volumes."""

from .pipeline_output import ViewsToVolumePipelineOutput
from .pipeline_views_to_volume import ViewsToVolumePipeline

__all__ = ["ViewsToVolumePipeline", "ViewsToVolumePipelineOutput"]
