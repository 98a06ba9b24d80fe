"""Makes a shipped model of a finished training: config, weights alone, log, entry of the metafile."""

import io
import json
import posixpath
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor

from ..registry import type_name
from ..training import (
    UsageError,
    inline_models,
    is_distillation,
    leaf_text,
    load_config,
    make_paths_relative,
    refuse_what_is_no_text,
    student_config,
)
from .shipped_models import METRICS, ZooError, evaluate_with_tool, publish
from .sweep_results import number
from .training_logs import GEOMETRY, read_scalars
from .work_dir import WorkDir, WorkDirError

BASES = 'configs/quickstart'
HOME = 'configs/digit_scenes'
LONGEST_LOG = 64_000  # bytes; of a longer one records are left out
# What belongs to one run of a config.
_OF_A_RUN = ('work_dir', 'launcher')
# What a distillation's checkpoint has beside its student.
_BEYOND_STUDENT = ('distiller.', 'teacher.')


class Finished(NamedTuple):
    """A finished training.

    Attributes:
        folder: Its work dir.
        about: Method, weight, seed, config and point of the grid, as the sweep has noted them.
        metrics: Of its last validation.
        iters: How many iterations it had.
        checkpoint: Its last one.
        cfg: Its config, with paths as seen from the repository's root.
        command: What trained it, as typed in the repository's root.
        commit: Of the repository that trained it.
    """

    folder: Path
    about: dict
    metrics: dict[str, float]
    iters: int
    checkpoint: Path
    cfg: Config
    command: str
    commit: str


def read_finished(
    folder: Path, root: Path, commit: str | None = None, replace: Mapping[str, str] | None = None
) -> Finished:
    """Read what a training of a sweep has left.

    Args:
        folder (Path): Of the training, in the folder of its sweep.
        root (Path): The repository, where the model is to be shipped.
        commit (str, optional): What trained it. Defaults to None, the last commit before its begin in
            the repository whose tools/train.py trained it.
        replace (Mapping[str, str], optional): Beginnings of paths in the config to what they become.

    Returns:
        Finished: The training.

    Raises:
        ZooError: If it is not finished, no commit can be found, or its config has paths that another
            machine does not have.
    """
    result = folder / 'result.json'
    if not result.is_file():
        raise ZooError(f'{folder} has no result.json: is it a finished training of a sweep?')
    result = json.loads(result.read_text())
    try:
        work_dir = WorkDir.find(folder)
    except WorkDirError as error:
        raise ZooError(str(error)) from error
    if result['checkpoint'] is None or not work_dir.commands:
        raise ZooError(f'{folder}: its logs have no command, or name no checkpoint')
    words = shlex.split(work_dir.commands[-1])
    origin = Path(words[1]).resolve().parents[1]
    words = _own_command(words, folder)
    if commit is None:
        commit = _commit_before(origin, work_dir.sessions[0])
    cfg = load_config(str(work_dir.config_file))
    for key in _OF_A_RUN:
        cfg.pop(key, None)
    if cfg.get('resume'):
        cfg.resume, cfg.load_from = False, None
    refuse_what_is_no_text(cfg, repr(str(folder)))
    make_paths_relative(cfg, [str(origin), str(root)])
    cfg = Config(_replaced(cfg.to_dict(), replace or {}))
    strange = sorted(set(_paths(cfg.to_dict())))
    if strange:
        raise ZooError(
            f'{folder}: its config has the paths {strange}, which are not below the repository. '
            'Give what they are there with --replace FROM=TO'
        )
    checkpoint = folder / Path(result['checkpoint']).name
    about, metrics, iters = result['about'], result['metrics'], result['iters']
    command = _as_typed(words, origin)
    return Finished(folder, about, metrics, iters, checkpoint, cfg, command, commit)


def _commit_before(origin: Path, session: Path) -> str:
    """Find the commit that a session was started with."""
    begun = time.mktime(time.strptime(session.name, '%Y%m%d_%H%M%S'))
    command = ['git', '-C', origin, 'rev-list', '-1', '--first-parent', f'--before={begun:.0f}']
    done = subprocess.run([*map(str, command), 'HEAD'], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise ZooError(
            f'{origin}, whose tools/train.py trained {session.parent}, does not tell which commit it '
            f'was ({done.stderr.strip() or "none is older than the training"}). Give it with --commit'
        )
    return done.stdout.strip()[:12]


def _own_command(words: list[str], folder: Path) -> list[str]:
    """Give the command of a training, also if its process had several of them (--together)."""
    if '--together' not in words:
        return words
    at = words.index('--together')
    commands = [words[2:at] + words[at + 2 :]]
    for file in sorted(folder.parent.glob('*/together.json')):
        commands += json.loads(file.read_text())
    for arguments in commands:
        if Path(arguments[arguments.index('--work-dir') + 1]).name == folder.name:
            return [*words[:2], *arguments]
    raise ZooError(
        f'{folder} was trained together with others, and no together.json of {folder.parent} has its '
        'arguments'
    )


def _as_typed(words: list[str], origin: Path) -> str:
    """Give a command without the paths of one machine, and without what is of one work dir."""
    typed = ['python', *(word.removeprefix(f'{origin}/') for word in words[1:])]
    for option in ('--work-dir', '--resume'):
        if option in typed:
            at = typed.index(option)
            del typed[at : at + 2]
    return shlex.join(typed)


def _replaced(value: object, replace: Mapping[str, str]) -> object:
    if isinstance(value, dict):
        return {key: _replaced(item, replace) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(item, replace) for item in value)
    if isinstance(value, str):
        for old, new in replace.items():
            if value == old or value.startswith(f'{old}/'):
                return posixpath.normpath(new + value[len(old) :])
    return value


def _paths(value: object) -> Iterator[str]:
    """Yield the paths that only one machine has."""
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str):
        if value.startswith(('/', '../')):
            yield value
    elif not isinstance(value, (int, float, type(None))):
        for item in value:
            yield from _paths(item)


def default_name(folder: Path) -> str:
    """Name a model after its training.

    Args:
        folder (Path): Of the training.

    Returns:
        str: Names of the sweep's folder and of the training's, of letters that a shell leaves alone.

    Example:
        >>> default_name(Path('work_dirs/pspnet-4000/naive-w1-model.teacher_ckpt=a.pth~1f-seed0'))
        'pspnet-4000_naive-w1-model.teacher_ckpt-a.pth-1f-seed0'
    """
    name = f'{folder.resolve().parent.name}_{folder.resolve().name}'
    return re.sub(r'[^\w.+-]+', '-', name)


def student_state(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Give the weights of a student alone.

    Args:
        state (Mapping[str, Tensor]): Of a model, or of a distillation.
        dtype (torch.dtype): Of the weights that are floating-point numbers.

    Returns:
        dict[str, Tensor]: The student's weights under its own names.
    """
    return {
        sys.intern(key): (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for key, value in state.items()
        if not key.startswith(_BEYOND_STUDENT)
    }


def weights_bytes(state: Mapping[str, Tensor], meta: Mapping[str, str | int]) -> bytes:
    """Write weights as a checkpoint: the same bytes for the same weights.

    Args:
        state (Mapping[str, Tensor]): See :func:`student_state`.
        meta (Mapping[str, str | int]): What they are.

    Returns:
        bytes: Content of a .pth file.
    """
    # a pickle has equal texts once or twice, as they are one object or two
    meta = {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in meta.items()
    }
    file = io.BytesIO()
    # a clone has a storage of its own, of which nothing is left over
    torch.save(dict(meta=meta, state_dict={k: v.clone() for k, v in state.items()}), file)
    return file.getvalue()


def log_of(folder: Path, longest: int = LONGEST_LOG) -> tuple[str, str]:
    """Give the log of a training as JSON lines.

    Args:
        folder (Path): Its work dir. Of what a resumed training did twice the last counts.
        longest (int): Bytes. Of a longer log every second, third, ... record of the training is kept,
            and all validations. Defaults to ``LONGEST_LOG``.

    Returns:
        tuple[str, str]: The lines, and how many of the records they are.
    """
    kinds = dict(training={}, geometry={}, validation={})
    for entry in read_scalars(folder):
        kind = 'training' if 'loss' in entry else 'validation'
        if any(name.startswith(GEOMETRY) for name in entry):
            kind = 'geometry'
        kinds[kind][entry['step']] = entry
    count = sum(map(len, kinds.values()))
    every = 0
    while True:
        every += 1
        records = []
        for kind, entries in kinds.items():
            entries = [entries[step] for step in sorted(entries)]
            records += entries if kind == 'validation' else entries[::-1][::every]
        records.sort(
            key=lambda entry: entry['step']
        )  # stable: a validation is the last of its step
        text = ''.join(json.dumps(entry) + '\n' for entry in records)
        if len(text) <= longest or every >= count:
            break
    if every == 1:
        return text, f'all {count} records'
    return text, f'every {every}. record of the training, {len(records)} of {count} in all'


def write_model(training: Finished, name: str, root: Path, staging: Path) -> dict:
    """Write the files of a model into a folder that stands beside the one where they are to be.

    Args:
        training (Finished): See :func:`read_finished`.
        name (str): What the model is to be called.
        root (Path): The repository.
        staging (Path): A folder below ``root/configs``; NAME.py, weights/NAME.pth and weights/NAME.json
            are written, and NAME_student.py if no config that comes along has the same student.

    Returns:
        dict: Its entry of the metafile, with paths in configs/digit_scenes.

    Raises:
        ZooError: If the weights, evaluated again, do not have the metric of the training.
        UsageError: If its config cannot be written.
    """
    (staging / 'weights').mkdir(parents=True, exist_ok=True)
    metric, value = publish(training.metrics)
    config = staging / f'{name}.py'
    weights = staging / f'weights/{name}.pth'
    _write_config(training.cfg, config, root, f'Ours, DigitScenes: {metric} {value}.')
    student = _student_config(training.cfg, name, root, staging)

    stored = _write_weights(training, config, weights, root, (metric, value))
    text, records = log_of(training.folder)
    weights.with_suffix('.json').write_text(text, encoding='utf-8')

    about, model = training.about, training.cfg.model
    is_distilled = is_distillation(training.cfg)
    metadata = {
        'Training Data': 'DigitScenes',
        'Batch Size': training.cfg.train_dataloader.batch_size,
        'Iterations': training.iters,
        'Architecture': _architecture(student_config(training.cfg).model),
        'Pair': training.folder.resolve().parent.name,
        'Method': about['method'],
        'Seed': about['seed'],
    }
    if about['weight'] is not None:
        metadata['Loss Weight'] = number(about['weight'])
    if about.get('grid'):
        metadata['Options'] = about['grid']
    if is_distilled:
        metadata['Teacher'] = {'Weights': model.get('teacher_ckpt')}
        metadata['Student'] = {'Config': student or f'{HOME}/{name}_student.py'}
    metadata |= {
        'Stored As': stored,
        'Log': f'{HOME}/weights/{name}.json',
        'Log Records': records,
        'Command': training.command,
        'Commit': training.commit,
    }
    published = METRICS[metric]
    return {
        'Name': name,
        'In Collection': 'DigitScenes',
        'Config': f'{HOME}/{name}.py',
        'Metadata': metadata,
        'Results': [
            {'Task': published.task, 'Dataset': 'DigitScenes', 'Metrics': {metric: float(value)}}
        ],
        'Weights': f'{HOME}/weights/{name}.pth',
    }


def _write_weights(
    training: Finished, config: Path, out: Path, root: Path, expected: tuple[str, str]
) -> str:
    """Write the weights as halves if that changes no digit of the metric, else as float32."""
    from .pictures import read_checkpoint

    state = read_checkpoint(str(training.checkpoint))['state_dict']
    meta = dict(config=config.name, iterations=training.iters, metric=' '.join(expected))
    for dtype, stored in ((torch.float16, 'float16'), (torch.float32, 'float32')):
        out.write_bytes(weights_bytes(student_state(state, dtype), meta))
        got = publish(evaluate_with_tool(root, config.relative_to(root), out.relative_to(root)))
        if got == expected:
            return stored
    raise ZooError(
        f'{training.folder}: the training ended with {" ".join(expected)}, and the weights of '
        f'{training.checkpoint.name} give {" ".join(got)}'
    )


def _architecture(model: dict) -> list[str]:
    parts = [model, model.get('backbone'), model.get('neck')]
    parts += [model.get(name) for name in ('decode_head', 'bbox_head')]
    return [type_name(part['type']) for part in parts if part]


def _relative(cfg: Config, root: Path) -> Config:
    make_paths_relative(cfg, [str(root)])
    return cfg


def _configs(folder: Path, root: Path) -> dict[Path, Config]:
    """Read the configs of a folder."""
    found = {}
    for path in sorted(folder.glob('*.py')):
        try:
            found[path] = _relative(load_config(str(path)), root)
        except (UsageError, ImportError):  # a detector's, where MMDetection is not installed
            continue
    return found


@cache
def _bases(root: Path) -> dict[Path, Config]:
    """Read the configs that others may inherit from; no model that is shipped changes them."""
    return _configs(root / BASES, root)


def _write_config(cfg: Config, out: Path, root: Path, comment: str) -> None:
    """Write a config as what differs from the shipped config that is most like it."""
    cfg = _without_other_files(cfg)
    texts = [leaf_text(path, base, cfg, out.parent) for path, base in _bases(root).items()]
    if not texts:
        raise ZooError(f'{root / BASES} has no config that another could inherit from')
    # the config may lie in any folder, and what it names lies beside it
    text = min(texts, key=len).replace("'configs/", "'{{ fileDirname }}/../")
    out.write_text(f'# {comment}\n{text}', encoding='utf-8')
    again = _relative(load_config(str(out)), root)
    if again.to_dict() != cfg.to_dict():
        raise ZooError(f'{out} reads differently than the config that it was written from')


def _without_other_files(cfg: Config) -> Config:
    """Write models out whose configs do not come along."""
    parts = [cfg.model.get(name) or {} for name in ('architecture', 'teacher')]
    paths = [part['cfg_path'] for part in parts if 'cfg_path' in part]
    if all('::' in path or path.startswith('configs/') for path in paths):
        return cfg
    return inline_models(cfg)


def _student_config(cfg: Config, name: str, root: Path, staging: Path) -> str | None:
    """Find the plain config of a student, which the tools of MMSegmentation evaluate with, or write it.

    Returns:
        str | None: Its path from the root; None if there was none, or nothing is distilled.
    """
    if not is_distillation(cfg):
        return None
    student = student_config(cfg)
    keys = ('model', 'test_dataloader', 'test_evaluator')
    for folder in (root / BASES, root / HOME, staging):
        configs = _bases(root) if folder == root / BASES else _configs(folder, root)
        found = {
            path: len(leaf_text(path, other, student, staging))
            for path, other in configs.items()
            if all(other.get(key) == student.get(key) for key in keys)
        }
        if found:  # the one that is most like it in all else
            best = min(found, key=found.get)
            return f'{HOME}/{best.name}' if folder == staging else best.relative_to(root).as_posix()
    out = staging / f'{name}_student.py'
    _write_config(student, out, root, f'The student of {name} alone.')
    return None


def total_size(files: Sequence[Path]) -> int:
    """Give how many bytes files have together.

    Args:
        files (Sequence[Path]): They exist.

    Returns:
        int: Bytes.
    """
    return sum(path.stat().st_size for path in files)
