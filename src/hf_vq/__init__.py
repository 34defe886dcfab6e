"""Vector-quantised networks for Hugging Face: tokenizers, code transformers and the pipelines built from them.

Importing the package registers its classes with the Auto classes of transformers and with diffusers; everything else is
imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin as ModelMixin
    from diffusers import SchedulerMixin as SchedulerMixin
    from transformers import ImageProcessingMixin as ImageProcessingMixin
    from transformers import PreTrainedModel as PreTrainedModel

    from .models.configuration_vq_image_classifier import VQImageClassifierConfig as VQImageClassifierConfig
    from .models.configuration_vq_tokenizer import VQTokenizerConfig as VQTokenizerConfig
    from .models.modeling_code_transformer import CodeTransformer as CodeTransformer
    from .models.modeling_vq_image_classifier import VQForImageClassification as VQForImageClassification
    from .models.modeling_vq_tokenizer import VQTokenizer as VQTokenizer
    from .pipelines.pipeline_code_generation import CodeGenerationPipeline as CodeGenerationPipeline
    from .pipelines.pipeline_views_to_volume import ViewsToVolumePipeline as ViewsToVolumePipeline
    from .processors.image_processing_ct_volume import CTVolumeProcessor as CTVolumeProcessor
    from .processors.image_processing_xray import XrayImageProcessor as XrayImageProcessor
    from .quantizers import CodebookUsage as CodebookUsage
    from .quantizers import FiniteScalarQuantizer as FiniteScalarQuantizer
    from .quantizers import FiniteScalarQuantizerConfig as FiniteScalarQuantizerConfig
    from .quantizers import LookupFreeQuantizer as LookupFreeQuantizer
    from .quantizers import LookupFreeQuantizerConfig as LookupFreeQuantizerConfig
    from .quantizers import VectorQuantizer as VectorQuantizer
    from .quantizers import VectorQuantizerConfig as VectorQuantizerConfig
    from .quantizers import VectorQuantizerOutput as VectorQuantizerOutput
    from .schedulers.scheduling_absorbing import AbsorbingScheduler as AbsorbingScheduler

__version__ = "0.1.0"

# Public name -> module that defines it. The last four are base classes of transformers and diffusers: diffusers looks
# for them at the top level of every library named in a model_index.json to learn how its components are loaded.
_EXPORTS = {
    "VectorQuantizer": "hf_vq.quantizers",
    "VectorQuantizerConfig": "hf_vq.quantizers",
    "VectorQuantizerOutput": "hf_vq.quantizers",
    "FiniteScalarQuantizer": "hf_vq.quantizers",
    "FiniteScalarQuantizerConfig": "hf_vq.quantizers",
    "LookupFreeQuantizer": "hf_vq.quantizers",
    "LookupFreeQuantizerConfig": "hf_vq.quantizers",
    "CodebookUsage": "hf_vq.quantizers",
    "VQTokenizer": "hf_vq.models.modeling_vq_tokenizer",
    "VQTokenizerConfig": "hf_vq.models.configuration_vq_tokenizer",
    "VQForImageClassification": "hf_vq.models.modeling_vq_image_classifier",
    "VQImageClassifierConfig": "hf_vq.models.configuration_vq_image_classifier",
    "CodeTransformer": "hf_vq.models.modeling_code_transformer",
    "AbsorbingScheduler": "hf_vq.schedulers.scheduling_absorbing",
    "CodeGenerationPipeline": "hf_vq.pipelines.pipeline_code_generation",
    "ViewsToVolumePipeline": "hf_vq.pipelines.pipeline_views_to_volume",
    "CTVolumeProcessor": "hf_vq.processors.image_processing_ct_volume",
    "XrayImageProcessor": "hf_vq.processors.image_processing_xray",
    "PreTrainedModel": "transformers",
    "ImageProcessingMixin": "transformers",
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}
_PIPELINES = frozenset({"CodeGenerationPipeline", "ViewsToVolumePipeline"})

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_with_transformers() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

    from .models.configuration_vq_image_classifier import VQImageClassifierConfig
    from .models.configuration_vq_tokenizer import VQTokenizerConfig
    from .models.modeling_vq_image_classifier import VQForImageClassification
    from .models.modeling_vq_tokenizer import VQTokenizer
    from .processors.image_processing_ct_volume import CTVolumeProcessor
    from .processors.image_processing_xray import XrayImageProcessor

    AutoConfig.register(VQTokenizerConfig.model_type, VQTokenizerConfig, exist_ok=True)
    AutoModel.register(VQTokenizerConfig, VQTokenizer, exist_ok=True)
    AutoConfig.register(VQImageClassifierConfig.model_type, VQImageClassifierConfig, exist_ok=True)
    AutoModelForImageClassification.register(VQImageClassifierConfig, VQForImageClassification, exist_ok=True)
    for processor in (XrayImageProcessor, CTVolumeProcessor):
        # AutoImageProcessor picks by class name among the registered entries, and takes the first backend of the entry
        # it finds. Two processors under one config class would shadow each other, so each has an entry of its own.
        AutoImageProcessor.register(
            processor, image_processor_classes={"pil": processor, "torchvision": processor}, exist_ok=True
        )


def _register_with_diffusers() -> None:
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    from .sharing import REQUIREMENT

    LOADABLE_CLASSES.setdefault(__name__, {})
    LOADABLE_CLASSES.setdefault(REQUIREMENT, {})
    # DiffusionPipeline.from_pretrained looks the class up as an attribute of diffusers. A module-level __getattr__
    # (PEP 562) answers for our pipelines alone and imports them only then.
    inherited = vars(diffusers).get("__getattr__")

    def find_pipeline(name: str) -> Any:
        if name in _PIPELINES:
            return __getattr__(name)
        if inherited is not None:
            return inherited(name)
        raise AttributeError(f"module 'diffusers' has no attribute {name!r}")

    vars(diffusers)["__getattr__"] = find_pipeline


def _register_with_models() -> None:
    """Hands the models, which import nothing of `hub`, what completes their uploads."""
    from .sharing import set_completion

    def complete_upload(*arguments: Any) -> None:
        from .hub.publishing import complete_upload

        complete_upload(*arguments)

    set_completion(complete_upload)


_register_with_transformers()
_register_with_diffusers()
_register_with_models()
