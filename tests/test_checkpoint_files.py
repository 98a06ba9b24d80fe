import errno
import os
import re
import subprocess

import pytest
import torch

from rawkd_mm.training.checkpoint_files import WholeFilesBackend, find_last_checkpoint
from rawkd_mm.training.checkpoint_loading import why_not_whole

backend = WholeFilesBackend()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_put(tmp_path):
    path = tmp_path / 'new/file'
    backend.put(b'one', path)
    backend.put(b'two', str(path))
    assert path.read_bytes() == b'two'
    backend.put_text('drei ß', path)
    assert path.read_text(encoding='utf-8') == 'drei ß'
    assert names(path.parent) == ['file']


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a megabyte."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'needs the right to mount a tmpfs: {error}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_full_disk_keeps_what_was_there(small_disk):
    path = small_disk / 'iter_1.pth'
    backend.put(b'x' * 600_000, path)
    for name in ('iter_1.pth', 'iter_2.pth'):
        with pytest.raises(OSError, match='No space left on device') as error:
            backend.put(b'y' * 600_000, small_disk / name)
        assert error.value.errno == errno.ENOSPC
    assert names(small_disk) == ['iter_1.pth']
    assert path.read_bytes() == b'x' * 600_000


def test_removal_waits_for_the_end(tmp_path):
    old, again = tmp_path / 'old', tmp_path / 'again'
    for path in (old, again):
        backend.put(b'1', path)
    with pytest.raises(KeyError), backend.removing_at_the_end():
        backend.remove(old)
        raise KeyError
    assert old.exists()
    with backend.removing_at_the_end():
        backend.remove(old)
        with backend.removing_at_the_end():
            backend.remove(str(again))
        backend.put(b'2', again)
        assert names(tmp_path) == ['again', 'old']
    assert names(tmp_path) == ['again']
    assert again.read_bytes() == b'2'
    backend.remove(again)
    assert not again.exists()


def test_unfinished_files_are_removed(tmp_path):
    (tmp_path / '.iter_1.pth.part').touch()
    (tmp_path / 'iter_1.pth').touch()
    backend.remove_unfinished(tmp_path)
    assert names(tmp_path) == ['iter_1.pth']


def save(folder, iteration, **kwargs):
    """A checkpoint as MMEngine writes it, older than the ones that are written after it."""
    path = folder / f'iter_{iteration}.pth'
    checkpoint = dict(meta=dict(iter=iteration), state_dict=dict(w=torch.ones(1000)), optimizer={})
    torch.save({k: v for k, v in dict(checkpoint, **kwargs).items() if v is not None}, path)
    os.utime(path, (iteration, iteration))
    (folder / 'last_checkpoint').write_text(str(path))
    return path


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)
    os.utime(path, (9, 9))


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the weights
    path.write_bytes(content)
    os.utime(path, (9, 9))


def test_whole(tmp_path):
    path = save(tmp_path, 1)
    assert why_not_whole(path) is None
    size = path.stat().st_size
    damage(path)
    assert why_not_whole(path) == "its part 'iter_1/data/0' is damaged"
    for left in (size - 1, size // 2, 1, 0):
        os.truncate(path, left)
        assert f'it was cut off or is no checkpoint ({left} bytes' in why_not_whole(path)


def test_last(tmp_path):
    assert find_last_checkpoint(tmp_path) == (None, [])
    first, last = save(tmp_path, 1), save(tmp_path, 2)
    os.utime(first, (9, 9))  # touched later
    assert find_last_checkpoint(tmp_path) == (str(last), [])
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_2.pth\n')
    assert find_last_checkpoint(tmp_path) == (str(last), [])
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/iter_2.pth')
    assert find_last_checkpoint(tmp_path) == ('s3://bucket/iter_2.pth', [])


@pytest.mark.parametrize(
    ('harm', 'reason'),
    [
        (cut_off, r"'.*/iter_3.pth': it was cut off or is no checkpoint \(\d+ bytes"),
        (damage, "'.*/iter_3.pth': its part 'iter_3/data/0' is damaged"),
        (os.remove, r"'.*/iter_3.pth' does not exist \(nor does '.*/iter_3.pth'\)"),
        (
            lambda path: (path.parent / 'last_checkpoint').write_text(''),
            "last_checkpoint' is empty",
        ),
    ],
)
def test_newest_whole_one(tmp_path, harm, reason):
    for iteration in (1, 2, 3):
        path = save(tmp_path, iteration)
    harm(path)
    found, (passed_over,) = find_last_checkpoint(tmp_path)
    assert os.path.basename(found) == ('iter_3.pth' if 'empty' in reason else 'iter_2.pth')
    assert re.search(reason, passed_over)


def test_not_for_going_on(tmp_path):
    whole = save(tmp_path, 1)
    weights = save(tmp_path, 5, meta=None, optimizer=None)
    cut_off(save(tmp_path, 6))
    found, passed_over = find_last_checkpoint(tmp_path)
    assert found == str(whole)
    assert passed_over[1] == f"'{weights}': it has no meta, optimizer to go on from"


def test_weights_to_begin_with_are_no_last_checkpoint(tmp_path):
    save(tmp_path, 5, meta=None)
    (tmp_path / 'last_checkpoint').unlink()
    found, (passed_over,) = find_last_checkpoint(tmp_path)
    assert found is None and 'has no meta' in passed_over


def test_none_is_whole(tmp_path):
    for iteration in (1, 2):
        cut_off(save(tmp_path, iteration))
    message = (
        "last_checkpoint' is there, but no whole checkpoint to go on from: "
        "'.*iter_2.pth': it was cut off.*; '.*iter_1.pth': it was cut off.*. Give a checkpoint with "
        "--resume PATH, or remove '.*last_checkpoint' to begin from the start"
    )
    with pytest.raises(ValueError, match=message):
        find_last_checkpoint(tmp_path)
