"""The page in a real browser: upload, generate, scroll through slices, download; bad files get words."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from webdriver import DIRECT, RIGHT_ARROW, Browser, answers, free_port, wait_for

SCRIPT = Path(__file__).parents[2] / "scripts" / "app.py"
PLANES = ("axial", "coronal", "sagittal")


@pytest.fixture(scope="module")
def folder(build_pipeline, tmp_path_factory) -> Path:
    """A saved pipeline."""
    path = tmp_path_factory.mktemp("page") / "pipeline"
    build_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory) -> Iterator[str]:
    """Address of a running page that takes files of up to one megabyte."""
    pytest.importorskip("gradio", reason="needs the extra `app`")
    port = free_port()
    log, temporary = (tmp_path_factory.mktemp("log") / "app.log").open("w+"), tmp_path_factory.mktemp("temporary")
    flags = ["--pipeline", str(folder), "--port", str(port), "--max_upload_mb", "1"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1,localhost", "TMPDIR": str(temporary)}
    process = subprocess.Popen([sys.executable, str(SCRIPT), *flags], stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}/"

    def is_up() -> bool:
        log.seek(0)
        assert process.poll() is None, log.read()
        return answers(address)

    wait_for(is_up, "the page", 300)
    yield address
    process.terminate()
    process.wait(timeout=120)
    log.close()
    assert not [*temporary.glob("hf-vq-app-*"), *temporary.glob("gradio*")]


def pixels(address: str) -> np.ndarray:
    """A picture of the page as the browser gets it."""
    with DIRECT.open(address, timeout=30) as response:
        return np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB")).astype(int)


def upload(browser: Browser, name: str, path: Path) -> None:
    """Gives a file to one of the page's upload buttons."""
    browser.run("window.scrollTo(0, 0)")
    browser.type(f"input[type=file]:has(+ #upload-{name})", str(path))


def download(browser: Browser, name: str) -> Path:
    """The file of a name, once the browser has saved it."""
    browser.click(f'#files a[download="{name}"]')
    return wait_for(lambda: next(browser.downloads.glob(name), None), f"the download {name}")


@pytest.mark.slow
def test_two_xrays_become_a_volume_that_can_be_looked_at_and_taken_home(browser, url, views, folder, tmp_path):
    browser.open(url)
    for name, path in views.items():
        upload(browser, name, path)
        shown = pixels(browser.new_image(f"#view-{name}"))
        assert shown.std() > 10
    assert "Not a medical device" in browser.text("#notice")
    browser.click("#generate")
    slices = {plane: browser.new_image(f"#slice-{plane}") for plane in PLANES}
    assert "4 samples, seeds 0 to 3: 32 steps" in browser.text("#status")
    for plane, before in slices.items():
        browser.type(f"#slider-{plane} input[type=range]", RIGHT_ARROW)
        after = browser.new_image(f"#slice-{plane}", before)
        assert np.abs(pixels(after) - pixels(before)).max() > 30
    browser.screenshot(tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").width >= 1200
    generated = nibabel.load(download(browser, "ct_seed2.nii.gz"))
    assert_drawn_by(folder, views, 2, generated)
    assert nibabel.load(download(browser, "ct_standard_deviation_of_4.nii.gz")).get_fdata().min() >= 0


def assert_drawn_by(folder: Path, views: dict[str, Path], seed: int, generated: nibabel.Nifti1Image) -> None:
    """Asserts that the saved pipeline draws this volume of these views with this seed."""
    from hf_vq import ViewsToVolumePipeline

    pipeline = ViewsToVolumePipeline.from_pretrained(folder)
    given = {name: str(path) for name, path in views.items()}
    volume = pipeline(given, num_inference_steps=32, generator=torch.Generator().manual_seed(seed)).volumes[0]
    np.testing.assert_allclose(np.asarray(generated.dataobj), np.asarray(volume.dataobj), atol=1)
    np.testing.assert_array_equal(generated.affine, volume.affine)


@pytest.mark.slow
def test_the_volume_turns_and_its_uncertainty_shows(browser, url, views):
    browser.open(url)
    for name, path in views.items():
        upload(browser, name, path)
        browser.new_image(f"#view-{name}")
    browser.click("#generate")
    plain = browser.new_image("#slice-axial")
    browser.click("#overlay input")
    coloured = pixels(browser.new_image("#slice-axial", plain))
    assert np.ptp(coloured, axis=2).max() > 100 > np.ptp(pixels(plain), axis=2).max()
    browser.click("#turn")
    with DIRECT.open(browser.new_image("#turntable"), timeout=30) as response:
        turntable = Image.open(io.BytesIO(response.read()))
    assert turntable.n_frames > 1


@pytest.mark.slow
def test_a_scan_goes_through_the_tokenizer(browser, url, tmp_path):
    hu = np.random.default_rng(0).integers(-1000, 1000, (20, 16, 12), dtype=np.int16)
    scan = tmp_path / "scan.nii.gz"
    nibabel.Nifti1Image(hu, np.diag([10.0, 10.0, 10.0, 1.0])).to_filename(scan)
    browser.open(url)
    browser.click("#tokenizer-tab-button")
    upload(browser, "scan", scan)
    pictures = {name: browser.new_image(f"#picture-{name}") for name in ("scan", "reconstruction", "error", "codes")}
    assert "PSNR" in browser.text("#reconstruction-status")
    assert "60 codes" in browser.text("#reconstruction-status")
    browser.type("#scan-slider input[type=range]", RIGHT_ARROW)
    for name in ("scan", "reconstruction", "error"):
        browser.new_image(f"#picture-{name}", pictures[name])


def refused(browser: Browser, place: str, words: str) -> None:
    """Waits until the page says something, which is no stack trace and does not tell where uploads lie."""
    text = wait_for(lambda: (now := browser.text(place)) and words in now and now, f"{words!r} in {place}")
    assert "Traceback" not in text
    assert "hf-vq-app-" not in text


@pytest.mark.slow
def test_bad_files_get_words(browser, url, tmp_path, views):
    broken, scan, large = tmp_path / "broken.png", tmp_path / "broken.nii.gz", tmp_path / "large.png"
    broken.write_text("not an image")
    scan.write_text("not a scan")
    large.write_bytes(views["frontal"].read_bytes() + bytes(2 << 20))
    browser.open(url)
    upload(browser, "frontal", broken)
    refused(browser, "#upload-message", "broken.png: found no PNG image and no DICOM file")
    upload(browser, "frontal", large)
    refused(browser, "body", "exceed the maximum allowed size")
    browser.click("#generate")
    refused(browser, "body", "This model needs all of its views; missing: frontal, lateral.")
    browser.open(url)
    browser.click("#tokenizer-tab-button")
    upload(browser, "scan", scan)
    refused(browser, "#scan-message", "broken.nii.gz: found no readable NIfTI file")
