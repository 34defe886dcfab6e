"""Pipelines: images and volumes from codes alone or from a class, volumes from views."""

from .loading import open_pipeline
from .pipeline_code_generation import CodeGenerationPipeline
from .pipeline_output import CodeGenerationPipelineOutput, ViewsToVolumePipelineOutput
from .pipeline_views_to_volume import ViewsToVolumePipeline

__all__ = [
    "CodeGenerationPipeline",
    "CodeGenerationPipelineOutput",
    "ViewsToVolumePipeline",
    "ViewsToVolumePipelineOutput",
    "open_pipeline",
]
