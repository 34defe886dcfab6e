"""transformers' common tests of models and configs, run against `VQForImageClassification` on each backbone."""

import unittest
from typing import Any

import torch
from adaptation import adapted
from test_vq_tokenizer import check_input_and_output_embeddings
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_vq import VQForImageClassification, VQImageClassifierConfig

# The common tests look here whether a model is a classifier that takes labels; a package registers its class elsewhere.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[VQImageClassifierConfig.model_type] = VQForImageClassification.__name__

IMAGE_SIZE = 24
NO_CHECKPOINTING = "recomputing a ResNet's stage would update the statistics of its batch normalisation twice"


class VQImageClassifierTester:
    """A small classifier and its inputs; the common tests read the attributes.

    Args:
        backbone_config: the network's fields, `backbone` among them.
        attributes: `seq_length` and `hidden_size`, the last two axes of the first hidden state, and
            `expected_num_hidden_layers`, how many there are; of a ViT `num_hidden_layers` and `num_attention_heads`.
    """

    batch_size = 3
    is_training = True
    num_hidden_layers = 0  # with attention

    def __init__(self, backbone: str, backbone_config: dict[str, Any], attributes: dict[str, int]) -> None:
        self.backbone, self.backbone_config = backbone, backbone_config
        vars(self).update(attributes)

    def get_config(self) -> VQImageClassifierConfig:
        return VQImageClassifierConfig(
            backbone=self.backbone,
            backbone_config=self.backbone_config,
            image_size=IMAGE_SIZE,
            num_labels=5,
            quantizer={"codebook_size": 16},
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[VQImageClassifierConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": floats_tensor([self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])}


class VQForImageClassificationTests(ModelTesterMixin):
    """The common tests, with what a classifier needs said."""

    backbone: str
    backbone_config: dict[str, Any]
    attributes: dict[str, int]
    all_model_classes = (VQForImageClassification,)
    has_attentions = False
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = VQImageClassifierTester(self.backbone, self.backbone_config, self.attributes)
        self.config_tester = ConfigTester(
            self,
            config_class=VQImageClassifierConfig,
            has_text_modality=False,
            common_properties=["backbone", "image_size", "num_channels", "num_labels"],
            backbone=self.backbone,
            image_size=64,
            num_channels=1,
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @adapted("the input embedding of an image network is a convolution, as in transformers' own")
    def test_model_get_set_embeddings(self) -> None:
        check_input_and_output_embeddings(self, VQForImageClassification(self.model_tester.get_config()), nn.Identity())


class AlexNetClassifierTest(VQForImageClassificationTests, unittest.TestCase):
    under_test = "VQForImageClassification, AlexNet"
    backbone = "alexnet"
    backbone_config = {  # noqa: RUF012
        "channels": [4, 6, 8, 6, 4],
        "stem_kernel_size": 3,
        "stem_stride": 1,
        "pooled_size": 1,
        "hidden_size": 32,
        "dropout": 0.1,
    }
    attributes = {"seq_length": 12, "hidden_size": 12, "expected_num_hidden_layers": 5}  # noqa: RUF012


class ResNetClassifierTest(VQForImageClassificationTests, unittest.TestCase):
    under_test = "VQForImageClassification, ResNet"
    backbone = "resnet"
    backbone_config = {"embedding_size": 4, "hidden_sizes": [4, 6, 8], "depths": [1, 1, 1]}  # noqa: RUF012
    attributes = {"seq_length": 6, "hidden_size": 6, "expected_num_hidden_layers": 4}  # noqa: RUF012

    @unittest.skip(NO_CHECKPOINTING)
    def test_gradient_checkpointing_enable_disable(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_gradient_checkpointing_backward_compatibility(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_peft_gradient_checkpointing_enable_disable(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_enable_input_require_grads_with_gradient_checkpointing(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_training_gradient_checkpointing(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_training_gradient_checkpointing_use_reentrant_false(self) -> None: ...

    @unittest.skip(NO_CHECKPOINTING)
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None: ...


class ViTClassifierTest(VQForImageClassificationTests, unittest.TestCase):
    under_test = "VQForImageClassification, ViT"
    backbone = "vit"
    backbone_config = {  # noqa: RUF012
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    }
    attributes = {  # noqa: RUF012
        "seq_length": 10,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "expected_num_hidden_layers": 3,
    }
    has_attentions = True
