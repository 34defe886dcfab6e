"""Codes are the same to the byte, whatever interrupted the run that made them; files that are bad are named."""

import os
import shutil
import signal
import sys

import nibabel
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from hf_vq import CTVolumeProcessor, VQTokenizer, VQTokenizerConfig, XrayImageProcessor
from hf_vq.data.sharding import ShardedOutput
from hf_vq.training.encoding import PairedEncoder, encode, files_digest

COUNTS = {"train": 5, "validation": 2}
SIDE, SHARD_SIZE = 8, 4


def write_data(root):
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True)
        lines = ["file_name,frontal,subject,label"]
        for number in range(count):
            name = f"{split}_{number}"
            volume = random.integers(-1000, 1000, (SIDE,) * 3).astype(np.int16)
            nibabel.Nifti1Image(volume, np.eye(4)).to_filename(root / split / f"{name}.nii.gz")
            Image.fromarray(random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(root / split / f"{name}.png")
            lines.append(f"{name}.nii.gz,{name}.png,{name},{'ab'[number % 2]}")
        (root / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, and untrained tokenizers for them."""
    root = tmp_path_factory.mktemp("encoding")
    write_data(root / "data")
    for dims, processor in ((3, CTVolumeProcessor()), (2, XrayImageProcessor())):
        torch.manual_seed(dims)
        sizes = {"base_channels": 4, "channel_multipliers": [1], "num_norm_groups": 2, "num_res_blocks": 1}
        quantizer = {"codebook_size": 16, "codebook_dim": 2}
        tokenizer = VQTokenizer(VQTokenizerConfig(spatial_dims=dims, stem_stride=4, quantizer=quantizer, **sizes))
        tokenizer.quantizer.codebook.weight.data.normal_()
        tokenizer.save_pretrained(root / f"tokenizer{dims}")
        processor.save_pretrained(root / f"tokenizer{dims}")
    return root


def make_encoder(folders, data="data", **options):
    tokenizers = (str(folders / f"tokenizer{dims}") for dims in (3, 2))
    return PairedEncoder(str(folders / data), *tokenizers, torch.device("cpu"), num_shifts=1, **options)


def output_of(encoder, path, **settings):
    sizes = {split: len(items) for split, items in encoder.items.items()}
    return ShardedOutput(path, {**encoder.settings, **settings}, sizes, SHARD_SIZE)


def encode_all(encoder, path, overwrite=False, **options):
    output = output_of(encoder, path)
    with output.writing(overwrite):
        encode(encoder, output, batch_size=3, **options)
        output.finish({})
    return output


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_until_killed(moment, work):
    """Runs something in a process of its own that kills itself when it renames a file for the given time."""
    child = os.fork()
    if child == 0:
        left = moment

        def watch(event, _):
            nonlocal left
            if event == "os.rename":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """What an uninterrupted run writes."""
    path = tmp_path_factory.mktemp("whole") / "codes"
    encode_all(make_encoder(folders), path)
    return contents(path)


def test_the_codes_load_as_the_tokenizers_make_them(folders, tmp_path):
    encoder = make_encoder(folders)
    encode_all(encoder, tmp_path / "codes")
    codes = load_from_disk(str(tmp_path / "codes")).with_format("numpy")
    assert {split: len(rows) for split, rows in codes.items()} == {"train": 2 * COUNTS["train"], "validation": 2}
    assert codes["train"]["label"][:4].tolist() == [0, 0, 1, 1]
    for index, row in enumerate(codes["train"]):
        item = encoder.items["train"][index]
        assert row["subject"] == item["subject"]
        tokenizer = VQTokenizer.from_pretrained(folders / "tokenizer3").eval()
        np.testing.assert_array_equal(row["codes"], tokenizer.encode(item["pixel_values"][None]).codes[0])
    assert codes["train"].cache_files  # mapped, not read


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(folders, whole, tmp_path):
    encoder, moment, through = make_encoder(folders), 0, False
    while not through:
        shutil.rmtree(tmp_path, ignore_errors=True)
        through = run_until_killed(moment, lambda: encode_all(encoder, tmp_path / "codes"))
        if not through:
            encode_all(encoder, tmp_path / "codes", overwrite=(tmp_path / "codes").exists())
        assert contents(tmp_path / "codes") == whole
        assert {path.name for path in tmp_path.iterdir()} == {"codes", ".codes.lock"}
        moment += 1
    assert moment > 8


def test_workers_and_several_processes_write_the_same_bytes(folders, whole, tmp_path):
    encoder = make_encoder(folders)
    encode_all(encoder, tmp_path / "workers", num_workers=2)
    assert contents(tmp_path / "workers") == whole
    output = output_of(encoder, tmp_path / "ranks")
    with output.writing():
        for rank in (1, 0):
            encode(encoder, output, rank, 2, batch_size=3)
        output.finish({})
    assert contents(tmp_path / "ranks") == whole


def test_what_is_finished_is_not_encoded_again(folders, tmp_path):
    encoder = make_encoder(folders)
    output = output_of(encoder, tmp_path / "codes")
    with output.writing():
        encode(encoder, output, rank=0, num_processes=2, batch_size=3)
    with output.writing():
        assert [shard.number for shard in output.missing("train")] == [1]
        assert output.missing("validation") == []


def test_an_unfinished_run_with_other_settings_is_not_gone_on_with(folders, tmp_path):
    encoder = make_encoder(folders)
    path = tmp_path / "codes"
    with output_of(encoder, path, batch_size=8).writing():
        pass
    other = output_of(encoder, path, batch_size=4)
    with pytest.raises(ValueError, match=r"other settings \(batch_size; batch_size was 8, now 4\)"), other.writing():
        pass
    with output_of(encoder, path, batch_size=4).writing(overwrite=True):
        assert len(output_of(encoder, path).missing("train")) == 3


def test_a_failing_run_leaves_the_earlier_codes(folders, whole, tmp_path):
    encoder = make_encoder(folders)
    encode_all(encoder, tmp_path / "codes")
    with pytest.raises(ValueError, match="not empty"):
        encode_all(encoder, tmp_path / "codes")
    output = output_of(encoder, tmp_path / "codes", batch_size=4)
    with pytest.raises(RuntimeError), output.writing(overwrite=True):
        encode(encoder, output, batch_size=4)
        raise RuntimeError
    assert contents(tmp_path / "codes") == whole


@pytest.fixture
def damaged(folders):
    """A copy of the data in which one volume is cut short, one is missing and one has a bit turned over."""
    shutil.copytree(folders / "data", folders / "damaged", dirs_exist_ok=True)
    train = folders / "damaged" / "train"
    content = bytearray((train / "train_0.nii.gz").read_bytes())
    (train / "train_1.nii.gz").write_bytes(content[:-100])
    (train / "train_2.nii.gz").unlink(missing_ok=True)
    content[len(content) // 2] ^= 255
    (train / "train_3.nii.gz").write_bytes(content)
    return "damaged"


def test_bad_files_stop_the_run_and_all_found_are_named(folders, damaged, tmp_path):
    with pytest.raises(ValueError, match=r"train_2\.nii\.gz"):
        make_encoder(folders, damaged)
    shutil.copy(folders / "data/train/train_2.nii.gz", folders / "damaged/train/train_2.nii.gz")
    with pytest.raises(
        ValueError, match=r"found 1 that .* train subject train_1: .*train_1\.nii\.gz.* --on_error skip"
    ):
        make_encoder(folders, damaged)
    shutil.copy(folders / "data/train/train_1.nii.gz", folders / "damaged/train/train_1.nii.gz")
    with pytest.raises(ValueError, match=r"train subject train_3: .*train_3\.nii\.gz"):
        encode_all(make_encoder(folders, damaged), tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_bad_files_are_skipped_and_listed_on_request(folders, damaged, tmp_path, capsys):
    encoder = make_encoder(folders, damaged, on_error="skip")
    output = output_of(encoder, tmp_path / "codes")
    with output.writing():
        encode(encoder, output, batch_size=3, skip_errors=True)
        assert {entry.subject for entry in output.skipped()} == {"train_1", "train_2", "train_3"}
        assert output.rows() == {"train": 4, "validation": 2}
        output.finish({})
    assert load_from_disk(str(tmp_path / "codes"))["train"]["subject"][:] == ["train_0"] * 2 + ["train_4"] * 2
    assert "skipped train subject train_2: " in capsys.readouterr().err


def test_a_change_of_the_data_is_noticed_and_the_output_is_none(tmp_path):
    data = write_data(tmp_path / "data")
    before = files_digest(str(data), data / "codes")
    (data / "codes").mkdir()
    (data / "codes" / "x").write_text("")
    (data / ".codes.lock").write_text("")
    assert files_digest(str(data), data / "codes") == before
    (data / "train" / "train_0.png").write_bytes(b"")
    assert files_digest(str(data), data / "codes") != before
