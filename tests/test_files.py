"""Nothing half-written bears its final name, and what is written can be read by whom the umask says."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from hf_vq.files import atomic_directory, atomic_file, clear_temporaries, move_files_into, staging_directory


def names_in(folder):
    """What lies in a folder besides locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_folder_appears_only_when_whole(tmp_path):
    final = tmp_path / "a" / "out"
    with atomic_directory(final) as temporary:
        (temporary / "x").write_text("1")
        assert not final.exists()
    assert (final / "x").read_text() == "1"
    assert names_in(final.parent) == ["out"]


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(final, overwrite=True) as temporary:
        (temporary / "new").write_text("2")
        raise RuntimeError
    assert [path.name for path in final.iterdir()] == ["old"]
    assert names_in(tmp_path) == ["out"]


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


def left_by_a_kill(folder):
    """What a run leaves that is killed between the two renames by which one folder takes the place of another."""
    for name, text in (("0123abcd.old", "earlier"), ("0123abcd.partial", "later"), ("4567cdef.partial", "older")):
        (folder / f".out.{name}").mkdir()
        (folder / f".out.{name}" / "x").write_text(text)


def test_a_folder_that_a_killed_run_set_aside_comes_back(tmp_path):
    left_by_a_kill(tmp_path)
    (tmp_path / ".outer.0123abcd.old").mkdir()  # of another folder
    with pytest.raises(ValueError, match="not empty"), atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "x").read_text() == "earlier"
    assert names_in(tmp_path) == [".outer.0123abcd.old", "out"]


def test_what_killed_runs_left_beside_a_whole_folder_goes(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("whole")
    left_by_a_kill(tmp_path)
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "out" / "x").read_text() == "whole"
    assert names_in(tmp_path) == ["out"]


def replace_and_die(final, moment):
    """In a process of its own writes a folder anew, killed at one of the calls to the operating system that the end
    makes; returns whether it got through."""
    child = os.fork()
    if child == 0:
        left = moment

        def watch(event, _):
            nonlocal left
            if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        with atomic_directory(final, overwrite=True) as folder:
            (folder / "x").write_text("new")
            sys.addaudithook(watch)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_a_folder_is_never_lost_at_any_moment_of_its_replacement(tmp_path):
    final, moment, through = tmp_path / "out", 0, False
    while not through:
        final.mkdir(exist_ok=True)
        (final / "x").write_text("old")
        through = replace_and_die(final, moment)
        with pytest.raises(RuntimeError), atomic_directory(final, overwrite=True):
            raise RuntimeError
        assert (final / "x").read_text() in ("old", "new")
        assert names_in(tmp_path) == ["out"]
        moment += 1
    assert moment > 5
    assert (final / "x").read_text() == "new"


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".out.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="is being written to by"), atomic_directory(tmp_path / "out"):
            pass
        other.communicate(b"\n")
    with atomic_directory(tmp_path / "out"):
        pass
    assert names_in(tmp_path) == ["out"]


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


def test_what_killed_runs_left_in_a_folder_is_cleared_and_nothing_else(tmp_path):
    kept = [tmp_path / "a.txt", tmp_path / ".hidden", tmp_path / "part" / ".0123456.txt"]
    (tmp_path / "part").mkdir()
    for path in kept:
        path.write_text("")
    (tmp_path / "part" / ".01234567.sheet.png").write_text("")
    (tmp_path / ".89abcdef.partial").mkdir()
    (tmp_path / ".89abcdef.partial" / "weights").write_text("")
    clear_temporaries(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert not (tmp_path / ".89abcdef.partial").exists()


def test_staging_directory_is_gone_afterwards(tmp_path):
    with staging_directory(tmp_path) as staging:
        (staging / "weights").write_text("")
        assert staging.parent == tmp_path
        clear_temporaries(tmp_path)  # by its name it is known as what a killed run would leave
        assert not staging.exists()
    assert list(tmp_path.iterdir()) == []
