"""The discriminator beside a tokenizer: losses, adaptive weight, and who learns from which step."""

import copy
import socket
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator

from hf_vq import VQTokenizer, VQTokenizerConfig
from hf_vq.training.adversarial import Adversary, DiscriminatorConfig, adaptive_weight, hinge_loss, last_layer_weight
from hf_vq.training.arguments import TrainingArguments

SIDE = 16
QUANTIZER = {"codebook_size": 8, "codebook_dim": 4}


def tokenizer_config(spatial_dims):
    return VQTokenizerConfig(
        spatial_dims=spatial_dims, base_channels=8, num_norm_groups=4, num_res_blocks=1, quantizer=QUANTIZER
    )


def make_adversary(spatial_dims=2, **fields):
    torch.manual_seed(0)
    args = TrainingArguments(data="d", output_dir="o", max_train_steps=20, lr_scheduler="linear", lr_warmup_steps=0)
    config = DiscriminatorConfig(**{"channels": 4, "num_layers": 2, **fields})
    adversary = Adversary(config, tokenizer_config(spatial_dims), args, fill=-1.0)
    adversary.prepare(Accelerator(cpu=True))
    return adversary


def images_of(spatial_dims, generator):
    return torch.rand(2, 1, *[SIDE] * spatial_dims, generator=generator)


def test_hinge_loss_is_zero_beyond_the_margins_and_rises_linearly_inside():
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -7.0])) == 0
    assert hinge_loss(torch.zeros(4), torch.zeros(4)) == 1
    # (0.5 + 2) / 2 from the real ones, (1.25 + 0) / 2 from the others
    assert hinge_loss(torch.tensor([0.5, -1.0]), torch.tensor([0.25, -2.0])) == 0.5 * (1.25 + 0.625)


def test_adaptive_weight_is_the_ratio_of_the_gradients_norms():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = 6 * weight[0] + 8 * weight[1], weight[0] * weight[1]  # gradients (6, 8) and (2, 1)
    factor = adaptive_weight(reconstruction, adversarial, weight, 100.0)
    torch.testing.assert_close(factor, torch.tensor(10 / (5**0.5 + 1e-6)))
    assert not factor.requires_grad
    assert adaptive_weight(reconstruction, adversarial, weight, 3.0) == 3
    assert adaptive_weight(reconstruction, 0 * adversarial, weight, 100.0) == 100
    (reconstruction + factor * adversarial).backward()  # both graphs are still there
    torch.testing.assert_close(weight.grad, torch.tensor([6.0, 8.0]) + factor * torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_last_layer_is_the_one_that_writes_the_reconstruction(spatial_dims, generator):
    model = VQTokenizer(tokenizer_config(spatial_dims))
    weight = last_layer_weight(model)
    assert weight is model.decoder.conv_out.conv.weight
    with torch.no_grad():
        weight.zero_()
    assert bool((model(images_of(spatial_dims, generator)).sample == 0).all())  # its bias starts at 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_discriminator_step_moves_the_discriminator_only(spatial_dims, generator):
    adversary = make_adversary(spatial_dims, augmentation=[])
    real, fake = images_of(spatial_dims, generator), images_of(spatial_dims, generator).requires_grad_()
    before = copy.deepcopy(adversary.model)
    figures = adversary.step(real, fake, generator)
    assert fake.grad is None
    expected = hinge_loss(before(real), before(fake))
    torch.testing.assert_close(figures["discriminator_loss"], expected.detach())
    torch.testing.assert_close(figures["real_logits"], before(real).mean().detach())
    torch.testing.assert_close(figures["fake_logits"], before(fake).mean().detach())
    parameters = zip(before.named_parameters(), adversary.model.parameters(), strict=True)
    still = [name for (name, old), new in parameters if torch.equal(old, new)]
    assert still == ["network.final_conv.conv.bias"]  # inside both margins, real and fake pull it alike
    assert hinge_loss(adversary.model(real), adversary.model(fake)) < expected


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_tokenizers_loss_is_minus_the_mean_logit_and_leaves_the_discriminator_alone(spatial_dims, generator):
    adversary = make_adversary(spatial_dims)
    state = copy.deepcopy(adversary.model.state_dict())
    fake = images_of(spatial_dims, generator).requires_grad_()
    loss = adversary.generator_loss(fake, torch.Generator().manual_seed(3))
    loss.backward()
    assert all(parameter.grad is None for parameter in adversary.model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in adversary.model.state_dict().items())

    direct = fake.detach().clone().requires_grad_()
    (seen,) = adversary.augment(torch.Generator().manual_seed(3), direct)
    expected = -adversary.model(seen).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(fake.grad, direct.grad)
    assert bool((fake.grad != 0).any())


def test_it_is_silent_before_its_start_step_and_its_schedule_begins_there(generator):
    adversary, images = make_adversary(start_step=15), images_of(2, generator)
    assert [adversary.is_active(step, images) for step in (0, 14, 15, 19)] == [False, False, True, True]
    rates = []
    for _ in range(5):  # linear decay over the 5 steps that are left of 20
        rates.append(adversary.lr_scheduler.get_last_lr()[0])
        adversary.step(images, images, generator)
    torch.testing.assert_close(rates, [1e-4, 0.8e-4, 0.6e-4, 0.4e-4, 0.2e-4])


def test_images_too_small_for_its_layers_are_refused_at_once():
    adversary = make_adversary(num_layers=3, start_step=10)
    assert not adversary.is_active(0, torch.zeros(1, 1, 24, 24))
    with pytest.raises(ValueError, match=r"num_layers=3 needs sides of at least 24; got \(24, 23\)"):
        adversary.is_active(0, torch.zeros(1, 1, 24, 23))


def test_a_verdict_does_not_depend_on_the_batch(generator):
    adversary = make_adversary()
    images = images_of(2, generator)
    with torch.no_grad():
        torch.testing.assert_close(adversary.model(images)[:1], adversary.model(images[:1]))


def test_a_loss_that_is_not_finite_ends_the_training(generator):
    adversary = make_adversary()
    with pytest.raises(ValueError, match="discriminator's loss became nan"):
        adversary.step(torch.full((1, 1, SIDE, SIDE), torch.nan), torch.zeros(1, 1, SIDE, SIDE), generator)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 6}, r"discriminator.channels=6 is out of range; it must be a multiple of 4"),
        ({"num_layers": 0}, "discriminator.num_layers=0"),
        ({"start_step": -1}, "discriminator.start_step=-1"),
        ({"learning_rate": 0.0}, "discriminator.learning_rate=0.0"),
        ({"weight_max": -1.0}, "discriminator.weight_max=-1.0"),
        ({"adam_beta2": 1.0}, "discriminator.adam_beta2=1.0"),
        ({"augmentation": ["flip"]}, r"discriminator.augmentation=\['flip'\].*translation"),
        ({"augmentation": "cutout"}, "discriminator.augmentation='cutout'"),
        ({"augmentation": None}, "discriminator.augmentation=None"),
        ({"channels": "many"}, "discriminator.channels='many' is out of range; it must be of type int"),
        ({"learning_rate": None}, "discriminator.learning_rate=None is out of range; it must be of type float"),
    ],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**fields)


def test_half_precision_with_one_gradient_scale_for_two_losses_is_refused():
    args = TrainingArguments(data="d", output_dir="o", mixed_precision="fp16")
    with pytest.raises(ValueError, match="choose bf16 or no"):
        Adversary(DiscriminatorConfig(), tokenizer_config(2), args, fill=0.0)


def test_a_missing_monai_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ImportError, match=r"monai: pip install hf-vq\[medical\]"):
        make_adversary()


def losses_of(weight, rows):
    return (rows @ weight).square().mean(), (rows @ weight).sin().mean()


def weight_and_rows():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, generator=generator, requires_grad=True), torch.rand(6, 3, generator=generator)


def worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weight, rows = weight_and_rows()
    results[rank] = adaptive_weight(*losses_of(weight, rows.chunk(2)[rank]), weight, 1e4)
    dist.destroy_process_group()


def test_two_processes_share_the_adaptive_weight_of_the_joined_batch():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(worker, args=(port, results), nprocs=2)
    weight, rows = weight_and_rows()
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], adaptive_weight(*losses_of(weight, rows), weight, 1e4))
