"""Checkpoint files that are whole or not there, and the last whole one of a work dir."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from .checkpoint import CheckpointError
from .checkpoint_loading import load_checkpoint, why_not_whole

__all__ = ['POINTER', 'WholeFilesBackend', 'find_last_checkpoint']

# The file in a work dir in which MMEngine's CheckpointHook writes the path of the last checkpoint.
POINTER = 'last_checkpoint'
_UNFINISHED = '.{}.part'


@register_backend('whole_files')
class WholeFilesBackend(LocalBackend):
    """MMEngine's file backend of the local disk, which never leaves half a file.

    A file is written under another name, synced to the disk and only then renamed. A process that
    dies in the middle, or a disk that is full, leaves what was there before.
    """

    def __init__(self) -> None:
        self._postponed: dict[str, int] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, all of it or nothing.

        Args:
            obj (bytes): The content.
            filepath (str | Path): Where to; its folder is made if need be.

        Raises:
            OSError: If it cannot be written, for example because the disk is full.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(_UNFINISHED.format(path.name))
        try:
            with open(unfinished, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write a text file, all of it or nothing; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file; within :meth:`removing_at_the_end` not yet."""
        if self._postponed is None:
            super().remove(filepath)
        else:
            self._postponed[str(filepath)] = os.stat(filepath).st_ino

    @contextlib.contextmanager
    def removing_at_the_end(self) -> Iterator[None]:
        """Postpone the removal of files to the end of the context; an error keeps them.

        A file that is written anew in the meantime stays.
        """
        if self._postponed is not None:  # an outer context will do it
            yield
            return
        self._postponed = {}
        try:
            yield
            for path, number in self._postponed.items():
                if os.path.exists(path) and os.stat(path).st_ino == number:
                    super().remove(path)
        finally:
            self._postponed = None

    @staticmethod
    def remove_unfinished(folder: str | Path) -> None:
        """Remove what processes that died while writing have left in a folder."""
        for path in Path(folder).glob(_UNFINISHED.format('*')):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename survives a power failure."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _why_not_resumable(filename: Path) -> str | None:
    reason = why_not_whole(filename)
    if reason is not None:
        return reason
    try:
        checkpoint = load_checkpoint(str(filename))
    except CheckpointError as error:
        return str(error)
    missing = {'meta', 'state_dict', 'optimizer'} - set(checkpoint)
    return f'it has no {", ".join(sorted(missing))} to go on from' if missing else None


def find_last_checkpoint(work_dir: str | Path) -> tuple[str | None, list[str]]:
    """Find the checkpoint from which the training of a work dir goes on.

    That is the one that the file last_checkpoint names (if the work dir was moved, the one of this
    name in it), or where that is not whole, the newest that is.

    Args:
        work_dir (str | Path): The folder.

    Returns:
        tuple[str | None, list[str]]: Its path, None if the work dir has none; and what was wrong
        with those that were passed over, for the log.

    Raises:
        ValueError: If there was one, and none is whole.
    """
    folder = Path(work_dir)
    named = None
    if (folder / POINTER).is_file():
        named = (folder / POINTER).read_text(encoding='utf-8').strip()
        if '://' in named:
            return named, []
    files = [path for path in folder.glob('*.pth') if path.is_file()]
    candidates = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    passed_over = []
    if named:
        first = Path(named) if os.path.isfile(named) else folder / Path(named).name
        if first.is_file():
            candidates = [first, *(path for path in candidates if path != first)]
        else:
            passed_over.append(f'{named!r} does not exist (nor does {str(first)!r})')
    elif named == '':
        passed_over.append(f'{str(folder / POINTER)!r} is empty')
    for path in candidates:
        reason = _why_not_resumable(path)
        if reason is None:
            return str(path), passed_over
        passed_over.append(f'{str(path)!r}: {reason}')
    if named is None:
        return None, passed_over
    raise ValueError(
        f'{str(folder / POINTER)!r} is there, but no whole checkpoint to go on from: '
        f'{"; ".join(passed_over)}. Give a checkpoint with --resume PATH, or remove '
        f'{str(folder / POINTER)!r} to begin from the start'
    )
