"""The sum of a tokenizer's losses, and what takes part in it when."""

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.training.adversarial import adaptive_weight, last_layer_weight
from hf_vq.training.run import TrainingRun, make_accelerator
from hf_vq.training.tokenizer_objective import ObjectiveArguments, TokenizerObjective

CONFIG = VQTokenizerConfig(
    spatial_dims=2, base_channels=8, num_norm_groups=4, num_res_blocks=1, quantizer={"codebook_size": 8}
)
DISCRIMINATOR = {"channels": 4, "num_layers": 1, "start_step": 1, "augmentation": []}


@pytest.fixture
def build(tmp_path):
    """Builds run and objective from flags, and gives the run, the objective and a batch of images."""

    def make(**flags):
        args = ObjectiveArguments(
            data="d", output_dir=str(tmp_path / "run"), max_train_steps=3, overwrite=True, **flags
        )
        accelerator = make_accelerator(args)
        model = VQTokenizer(CONFIG)
        objective = TokenizerObjective(args, CONFIG, (-1.0, 1.0), accelerator.device)
        training = TrainingRun(accelerator, model, args, objective.adversary)
        training.model.train()
        images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), device=accelerator.device)
        return training, objective, images

    return make


def test_without_further_losses_it_is_the_models_own(build, generator):
    training, objective, images = build(discriminator=DISCRIMINATOR)
    state = generator.get_state()
    output = training.model(images)
    loss, figures = objective(training, output, images, generator)
    assert loss is output.loss
    assert set(figures) == {"reconstruction_loss", "commitment_loss", "codebook_loss", "perplexity", "active_fraction"}
    assert torch.equal(generator.get_state(), state)
    assert objective.adversary is None
    assert len(training.accelerator._models) == 1


def test_the_discriminator_is_added_with_both_weights_from_its_start_step_on(build, generator):
    training, objective, images = build(adversarial_weight=0.5, discriminator=DISCRIMINATOR)
    output = training.model(images)
    assert objective(training, output, images, generator)[0] is output.loss
    training.step = 1
    loss, figures = objective(training, output, images, generator)
    adversarial = objective.adversary.generator_loss(output.sample, generator)  # the discriminator has made its step
    factor = adaptive_weight(output.reconstruction_loss, adversarial, last_layer_weight(training.unwrapped_model), 1e4)
    torch.testing.assert_close(loss, output.loss + 0.5 * factor * adversarial)
    torch.testing.assert_close(figures["adaptive_weight"], factor)
    torch.testing.assert_close(figures["adversarial_loss"], adversarial)
    assert {"discriminator_loss", "real_logits", "fake_logits"} <= set(figures)


def test_the_perceptual_loss_counts_as_reconstruction(build, tmp_path, generator):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    weights = {"perceptual_weight": 2.0, "adversarial_weight": 0.5}
    training, objective, images = build(
        perceptual_model=str(tmp_path / "resnet"), discriminator={**DISCRIMINATOR, "start_step": 0}, **weights
    )
    output = training.model(images)
    loss, figures = objective(training, output, images, generator)
    distance = objective.perceptual(output.sample, images, generator)
    torch.testing.assert_close(figures["perceptual_loss"], distance)
    adversarial = objective.adversary.generator_loss(output.sample, generator)
    last_layer = last_layer_weight(training.unwrapped_model)
    factor = adaptive_weight(output.reconstruction_loss + 2 * distance, adversarial, last_layer, 1e4)
    torch.testing.assert_close(loss, output.loss + 2 * distance + 0.5 * factor * adversarial)


def test_flags_out_of_range_or_unknown_are_named(build):
    with pytest.raises(ValueError, match="--adversarial_weight must be at least 0; got -1"):
        build(adversarial_weight=-1.0)
    with pytest.raises(ValueError, match=r"--discriminator.colour: unknown field .* 'weight_max'"):
        build(discriminator={"colour": 1})
