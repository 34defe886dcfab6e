"""`scripts/demo_collapse.py` with few steps on tiny images."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.quantizers import VectorQuantizerConfig
from hf_vq.training.arguments import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo_collapse.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("demo_collapse", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def write_images(root, side):
    rng = np.random.default_rng(0)
    for prefix, count in {"train": 40, "t10k": 12}.items():
        sides = b"".join(number.to_bytes(4, "big") for number in (count, side, side))
        pixels = rng.integers(0, 256, (count, side, side), np.uint8).tobytes()
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sides + pixels)
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + bytes(count)
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return root


def test_both_networks_are_trained_and_drawn(script, tmp_path, capsys):
    data, picture = write_images(tmp_path, 8), tmp_path / "out" / "collapse.png"
    script.main(["--data", str(data), "--steps", "3", "--output", str(picture)])
    printed = capsys.readouterr().out
    for name in ("plain VQ", "hf_vq default"):
        assert re.search(rf"{name}: PSNR [\d.]+ dB, \d+ of 512 codes active, perplexity \d+, \d+ s", printed)
    with Image.open(picture) as image:
        assert min(image.size) > 500


def test_both_networks_begin_alike(script):
    """The same encoder and decoder, whatever the quantizer; the second quantizer is the default one."""
    models = []
    for fields in script.ARMS.values():
        torch.manual_seed(3)
        models.append(script.Autoencoder(**fields))
    plain, default = models
    for part in ("encoder", "decoder"):
        states = [getattr(model, part).state_dict() for model in models]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    size = {"codebook_size": script.CODEBOOK_SIZE, "codebook_dim": script.CODEBOOK_DIM}
    assert default.quantizer.config == VectorQuantizerConfig(**size)
    assert plain.quantizer.config == VectorQuantizerConfig(**script.PLAIN, **script.PLAIN_WEIGHTS, **size)


def test_usage_and_psnr_of_an_evaluation(script):
    torch.manual_seed(0)
    model = script.Autoencoder(**script.ARMS["plain VQ"])
    images = torch.rand(5, 1, 8, 8)
    result = script.evaluate(model, images)
    with torch.no_grad():
        sample, quantized = model.eval()(images)
    mse = (sample.clamp(0, 1) - images).square().mean(dim=(1, 2, 3))
    assert result.psnr == pytest.approx(float((10 * (1 / mse).log10()).mean()), rel=1e-5)
    assert result.usage["active_codes"] == len(quantized.codes.unique())
    assert result.counts.shape == (script.CODEBOOK_SIZE,)
    assert int(result.counts.sum()) == 5 * 2 * 2
    assert torch.equal(result.reconstructions, sample.clamp(0, 1))


def test_images_it_cannot_use_are_refused_in_one_line(script, tmp_path, capsys):
    data = write_images(tmp_path, 9)
    with pytest.raises(SystemExit) as failure:
        run(lambda: script.main(["--data", str(data)]))
    assert failure.value.code == 2
    assert "found images of shape (9, 9), expected greyscale ones" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--steps: found 0"):
        script.main(["--data", str(data), "--steps", "0"])
