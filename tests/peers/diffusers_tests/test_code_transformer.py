"""diffusers' tests of models, for the code transformer."""

import torch
from tests.models import testing_utils
from tests.testing_utils import torch_device
from without_accelerator import on_any_device

from hf_vq import CodeTransformer

BATCH_SIZE, NUM_CODES, GRID, CONTEXT_GRID, CONTEXT_DIM, NUM_CLASSES = 2, 24, (2, 3, 4), (3, 4), 5, 3


class CodeTransformerTesterConfig(testing_utils.BaseModelTesterConfig):
    """A tiny model with two views and classes."""

    model_class = CodeTransformer
    main_input_name = "sample"
    output_shape = (24, NUM_CODES)

    def get_init_dict(self):
        return {
            "num_codes": NUM_CODES,
            "code_grid": GRID,
            "context_dim": CONTEXT_DIM,
            "context_grid": CONTEXT_GRID,
            "num_classes": NUM_CLASSES,
            "hidden_size": 36,
            "num_layers": 2,
            "num_heads": 3,
        }

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(0)
        sample = torch.randint(NUM_CODES + 1, (BATCH_SIZE, 24), generator=generator)
        context = torch.randn(BATCH_SIZE, 2, 12, CONTEXT_DIM, generator=generator)
        inputs = {"sample": sample, "class_labels": torch.tensor([0, NUM_CLASSES])}
        if self.get_init_dict()["context_dim"] is not None:
            inputs |= {"context": context, "view_mask": torch.tensor([[True, True], [False, True]])}
        return {name: value.to(torch_device) for name, value in inputs.items()}


class CodeTransformerTests(
    CodeTransformerTesterConfig, testing_utils.ModelTesterMixin, testing_utils.TrainingTesterMixin
):
    """What every form of the model is put to."""

    test_sharded_checkpoints = on_any_device(testing_utils.ModelTesterMixin.test_sharded_checkpoints)
    test_sharded_checkpoints_with_variant = on_any_device(
        testing_utils.ModelTesterMixin.test_sharded_checkpoints_with_variant
    )
    test_from_save_pretrained_dtype_inference = on_any_device(
        testing_utils.ModelTesterMixin.test_from_save_pretrained_dtype_inference
    )

    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"CodeTransformer"})


class TestFullAttention(CodeTransformerTests):
    under_test = "CodeTransformer, views and codes attend to each other"


class TestPrefixAttention(CodeTransformerTests):
    under_test = "CodeTransformer, views as a prefix, rotary positions"

    def get_init_dict(self):
        return super().get_init_dict() | {"context_attention": "prefix", "position_embedding": "axial_rotary"}


class TestCausal(CodeTransformerTests):
    under_test = "CodeTransformer, causal, without views, learned positions"

    def get_init_dict(self):
        return super().get_init_dict() | {"causal": True, "context_dim": None, "position_embedding": "learned"}


class TestLayerwiseCasting(CodeTransformerTesterConfig, testing_utils.LayerwiseCastingTesterMixin):
    under_test = "CodeTransformer, weights stored in 8 bits"


class TestOffloading(
    CodeTransformerTesterConfig, testing_utils.CPUOffloadTesterMixin, testing_utils.GroupOffloadTesterMixin
):
    under_test = "CodeTransformer, offloaded"
    pytestmark = testing_utils.MemoryTesterMixin.pytestmark


class TestCompilation(CodeTransformerTesterConfig, testing_utils.TorchCompileTesterMixin):
    under_test = "CodeTransformer, compiled"
