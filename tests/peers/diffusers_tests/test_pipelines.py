"""diffusers' tests of pipelines, for the two that generate from codes."""

import numpy as np
import pytest
import torch
from adaptation import adapted
from PIL import Image
from tests.pipelines import testing_utils
from without_accelerator import on_any_device

from hf_vq import (
    AbsorbingScheduler,
    CodeGenerationPipeline,
    CodeTransformer,
    CTVolumeProcessor,
    ViewsToVolumePipeline,
    VQTokenizer,
    VQTokenizerConfig,
    XrayImageProcessor,
)

NUM_CODES, CODE_DIM = 11, 3
PipelineTests = testing_utils.PipelineTesterMixin
OffloadTests = testing_utils.PipelineOffloadTesterMixin


def tokenizer(spatial_dims):
    """An untrained one whose codes lie far enough apart that other codes give other images."""
    config = VQTokenizerConfig(
        spatial_dims=spatial_dims,
        base_channels=8,
        channel_multipliers=[1],
        stem_stride=4,
        num_res_blocks=1,
        num_norm_groups=4,
        quantizer={"codebook_size": NUM_CODES, "codebook_dim": CODE_DIM},
    )
    model = VQTokenizer(config)
    model.quantizer.codebook.weight.data.normal_()
    return model.eval()


def transformer(code_grid, **fields):
    model = CodeTransformer(
        num_codes=NUM_CODES, code_grid=code_grid, hidden_size=24, num_layers=2, num_heads=2, **fields
    )
    model.head.weight.data.normal_()
    return model.eval()


class PipelineTesterConfig(testing_utils.BasePipelineTesterConfig):
    """What both pipelines have in common in these tests."""

    callback_cfg_params = frozenset()

    @pytest.mark.skip(
        "it moves only components named as in diffusers; "
        "where there is an accelerator, test_pipeline_level_group_offloading_inference stands for it"
    )
    def test_group_offloading_inference(self):
        pass

    test_half_precision_inference_no_nan = on_any_device(PipelineTests.test_half_precision_inference_no_nan)
    test_save_load_float16 = on_any_device(PipelineTests.test_save_load_float16)
    test_to_device = on_any_device(PipelineTests.test_to_device)
    test_model_cpu_offload_forward_pass = on_any_device(OffloadTests.test_model_cpu_offload_forward_pass)


class TestCodeGenerationPipeline(
    PipelineTesterConfig,
    PipelineTests,
    OffloadTests,
    testing_utils.GroupOffloadTesterMixin,
    testing_utils.LayerwiseCastingTesterMixin,
):
    under_test = "CodeGenerationPipeline"
    pipeline_class = CodeGenerationPipeline
    required_input_params_in_call_signature = frozenset({"class_labels", "batch_size", "guidance_scale"})
    batch_input_params = frozenset({"class_labels"})
    output_shape = (1, 12, 16)

    def get_dummy_components(self):
        torch.manual_seed(0)
        return {
            "tokenizer": tokenizer(2),
            "transformer": transformer((3, 4), context_dim=None, num_classes=3, label_dropout=0.1),
            "scheduler": AbsorbingScheduler(NUM_CODES),
        }

    def get_dummy_inputs(self):
        return {"class_labels": 1, "num_inference_steps": 3, "output_type": "pt", "generator": self.get_generator()}


class TestViewsToVolumePipeline(
    PipelineTesterConfig,
    PipelineTests,
    OffloadTests,
    testing_utils.GroupOffloadTesterMixin,
    testing_utils.LayerwiseCastingTesterMixin,
):
    under_test = "ViewsToVolumePipeline"
    pipeline_class = ViewsToVolumePipeline
    required_input_params_in_call_signature = frozenset({"views", "class_labels", "guidance_scale"})
    batch_input_params = frozenset({"views"})
    # Pipelines that do not make images call it by what they make, those of diffusers too.
    optional_input_params = testing_utils.BasePipelineTesterConfig.optional_input_params - {"num_images_per_prompt"} | {
        "num_volumes_per_prompt"
    }
    output_shape = (1, 8, 12, 16)
    context_attention = "full"

    def get_dummy_components(self):
        torch.manual_seed(0)
        views = {"context_dim": CODE_DIM, "context_grid": (4, 4), "context_dropout": 0.1}
        return {
            "volume_tokenizer": tokenizer(3),
            "view_tokenizer": tokenizer(2),
            "transformer": transformer((2, 3, 4), context_attention=self.context_attention, **views),
            "scheduler": AbsorbingScheduler(NUM_CODES),
            "volume_processor": CTVolumeProcessor(size=[8, 12, 16], spacing=[4.0, 3.0, 2.0]),
            "view_processor": XrayImageProcessor(size={"height": 16, "width": 16}),
        }

    def get_dummy_inputs(self):
        pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16), dtype=np.uint8)
        views = dict(zip(("frontal", "lateral"), map(Image.fromarray, pixels), strict=True))
        return {"views": views, "num_inference_steps": 3, "output_type": "pt", "generator": self.get_generator()}

    @adapted("the argument is called num_volumes_per_prompt")
    def test_num_images_per_prompt(self):
        pipe = self.get_pipeline()
        for batch_size in (1, 2):
            for count in (1, 2):
                inputs = self.get_dummy_inputs()
                inputs["views"] = batch_size * [inputs["views"]]
                assert len(pipe(**inputs, num_volumes_per_prompt=count)[0]) == batch_size * count


class TestViewsToVolumePipelineWithPrefix(TestViewsToVolumePipeline):
    under_test = "ViewsToVolumePipeline, views encoded once"
    context_attention = "prefix"
