"""The page's files."""

import os
import shutil
import time

from hf_vq.app.workspace import Workspace


def test_old_folders_go_when_new_ones_come_and_all_at_the_end():
    workspace = Workspace(max_age=60)
    old, young = workspace.new_folder(), workspace.new_folder()
    for folder in (old, young):
        (folder / "ct.nii.gz").write_bytes(b"voxels")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    new = workspace.new_folder()
    assert len({old, young, new}) == 3
    assert not old.exists()
    assert (young / "ct.nii.gz").is_file()
    assert list(new.iterdir()) == []
    workspace.close()
    assert not workspace.path.exists()


def test_a_folder_that_another_call_removes_at_the_same_time_is_no_error(monkeypatch):
    workspace = Workspace(max_age=60)
    old = [workspace.new_folder(), workspace.new_folder()]
    hour_ago = time.time() - 3600
    for folder in old:
        os.utime(folder, (hour_ago, hour_ago))
    remove = shutil.rmtree

    def remove_both(_, ignore_errors=False):
        for folder in old:
            remove(folder, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", remove_both)
    assert workspace.new_folder().is_dir()
    monkeypatch.undo()
    assert not any(folder.exists() for folder in old)
    workspace.close()
