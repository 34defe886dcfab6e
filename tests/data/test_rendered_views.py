import json

import pytest

from hf_vq.data import BeamGeometry
from hf_vq.data.rendered_views import rendered_beam


def test_a_folder_that_says_nothing_has_views_of_unknown_origin(tmp_path):
    assert rendered_beam(tmp_path) is None
    assert rendered_beam("somebody/data") is None
    (tmp_path / "preparation.json").write_text(json.dumps({"size": [8, 8, 8]}))
    assert rendered_beam(tmp_path) is None
    (tmp_path / "preparation.json").write_text(json.dumps({"radiographs": "digest of a list of files"}))
    assert rendered_beam(tmp_path) is None


def test_a_preparation_says_that_it_rendered_its_views(tmp_path):
    (tmp_path / "preparation.json").write_text(json.dumps({"radiographs": "rendered"}))
    assert rendered_beam(tmp_path) == BeamGeometry()


def test_a_cohort_without_a_beam_was_rendered_with_parallel_rays(tmp_path):
    (tmp_path / "cohort.json").write_text(json.dumps({"settings": {"size": 32}}))
    assert rendered_beam(tmp_path) == BeamGeometry()


@pytest.mark.parametrize("name", ["cohort.json", "preparation.json"])
@pytest.mark.parametrize("nested", [True, False])
def test_the_beam_is_read_back(tmp_path, name, nested):
    beam = {"source_detector_distance": 1800.0, "source_isocentre_distance": 1600.0, "detector_size": [400.0, 350.0]}
    (tmp_path / name).write_text(json.dumps({"settings": {"beam": beam}} if nested else {"beam": beam}))
    assert rendered_beam(str(tmp_path)) == BeamGeometry(1800.0, 1600.0, (400.0, 350.0))


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {"beam": {"distance": 3}}}', '{"settings": {"beam": 3}}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "cohort.json").write_text(text)
    with pytest.raises(ValueError, match=r"cohort.json: found no readable record of .*; restore or remove it"):
        rendered_beam(tmp_path)


def test_a_malformed_beam_is_named(tmp_path):
    beam = {"source_detector_distance": 1800.0}
    (tmp_path / "cohort.json").write_text(json.dumps({"settings": {"beam": beam}}))
    with pytest.raises(ValueError, match=r"cohort.json: .*source_isocentre_distance: found None"):
        rendered_beam(tmp_path)
