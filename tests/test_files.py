"""Nothing half-written bears its final name, and what is written can be read by whom the umask says."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from hf_vq.files import atomic_directory, atomic_file, move_files_into


def test_a_folder_appears_only_when_whole(tmp_path):
    final = tmp_path / "a" / "out"
    with atomic_directory(final) as temporary:
        (temporary / "x").write_text("1")
        assert not final.exists()
    assert (final / "x").read_text() == "1"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(final, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
        raise RuntimeError
    assert [path.name for path in final.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_folder_is_replaced_only_on_request(tmp_path):
    (tmp_path / "old").write_text("1")
    with pytest.raises(ValueError, match="not empty"), atomic_directory(tmp_path):
        pass
    final = tmp_path / "out"
    for text in ("1", "2"):
        with atomic_directory(final, overwrite=True) as temporary:
            (temporary / text).write_text(text)
    assert [path.name for path in final.iterdir()] == ["2"]


def test_a_folder_of_another_kind_is_never_replaced(tmp_path):
    final = tmp_path / "thesis"
    final.mkdir()
    (final / "chapter").write_text("1")
    marked = {"overwrite": True, "marker": "*/cohort.json"}
    with pytest.raises(ValueError, match="holds no"), atomic_directory(final, **marked):
        pass
    assert (final / "chapter").read_text() == "1"
    (final / "train").mkdir()
    (final / "train" / "cohort.json").write_text("")
    with atomic_directory(final, **marked):
        pass
    assert list(final.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="is a file"), atomic_directory(tmp_path / "out"):
        pass


def test_a_file_appears_only_when_whole(tmp_path):
    final = tmp_path / "a.nii.gz"
    with pytest.raises(RuntimeError), atomic_file(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(final) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
    assert final.read_text() == "whole"


def test_the_marker_of_a_complete_folder_arrives_last(tmp_path, monkeypatch):
    source, final = tmp_path / "new", tmp_path / "out"
    for folder, text in ((source, "2"), (final, "1")):
        (folder / "part").mkdir(parents=True)
        for name in ("config.json", "zzz", "part/weights"):
            (folder / name).write_text(text)
    arrived = []
    replace = __import__("os").replace
    monkeypatch.setattr("os.replace", lambda a, b: (arrived.append(b.name), replace(a, b)))
    move_files_into(source, final, last="config.json")
    assert arrived == ["part", "zzz", "config.json"]
    assert {(final / name).read_text() for name in ("config.json", "zzz", "part/weights")} == {"2"}


def permissions(folder):
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_weights_get_the_permissions_of_their_neighbours(tmp_path, umask):
    before = os.umask(umask)
    try:
        source, moved, whole = (tmp_path / name for name in ("new", "moved", "whole"))
        (source / "part").mkdir(parents=True)
        with atomic_directory(whole) as temporary:
            for folder in (source, source / "part", temporary):
                save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
                (folder / "config.json").write_text("")
        move_files_into(source, moved, last="config.json")
    finally:
        os.umask(before)
    for folder in (moved, moved / "part", whole):
        assert set(permissions(folder).values()) == {oct(0o666 & ~umask)}
