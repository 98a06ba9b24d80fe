"""Tables of the models whose weights come along: their own page, and a part of each method's page."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from .shipped_models import METAFILE, METRICS, Shipped

FOLDER = METAFILE.parent
_BEGIN = '<!-- Ours: tools/dev/ship_models.py writes this part. -->'
_END = '<!-- End of ours. -->'
_BEFORE = '## Assumptions'
_HEAD = """\
# Ours, DigitScenes: models with weights

These models were trained here, on generated images ([results](../../docs/results.md)). Their numbers
are ours. They say nothing about the paper's models and data.

```bash
python tools/dataset_converters/digit_scenes.py --size 48                               # the data
python tools/dataset_converters/digit_scenes.py --root data/digit_scenes_64 --size 64   # for detectors
python tools/test.py CONFIG WEIGHTS
python MMSEG/tools/test.py STUDENT WEIGHTS   # MMSegmentation's own tool, the student's plain config
make check-zoo                               # evaluates all of them, and compares with this page
```

Each row is one training with one seed; [analysis](../../docs/analysis.md) tells how much seeds differ.
"Over the student alone" is the difference to the student alone with the same seed, or `-` if that has
no weights here. [metafile.yml](metafile.yml) has the command and the commit of each training.
"""
_FOOT = """\
The weights have {megabytes} MB in all. They are stored as halves (float16) where that changes no digit
of the metric, and else as float32. Of a long log some records of the training are left out; the column
"log" tells how many. `tools/dev/ship_models.py` writes this page.
"""
_PART = """\
## Ours, DigitScenes

Small models on generated images, which say nothing about the paper's. One seed each. Their weights and
logs come along: [configs/digit_scenes](../digit_scenes).
"""


def method_folder(root: Path, model: Shipped) -> str | None:
    """Give the folder of configs whose page shows a model.

    Args:
        root (Path): The repository.
        model (Shipped): A model.

    Returns:
        str | None: Such as 'lad', or 'students'; None if there is none for its method.
    """
    method = model.metadata['Method']
    folder = 'students' if method == 'student' else method
    page = root / 'configs' / folder / 'README.md'
    return folder if folder != FOLDER.name and page.is_file() else None


def make_page(root: Path, models: Sequence[Shipped]) -> str:
    """Write the page of all models whose weights come along.

    Args:
        root (Path): The repository; the sizes of its files are in the page.
        models (Sequence[Shipped]): See :func:`.shipped_models.read_shipped`.

    Returns:
        str: Markdown.
    """
    total = sum((root / model.weights).stat().st_size for model in models)
    parts = [_HEAD]
    for title, chosen in _sections(models):
        parts += [f'## {title}', '', *_table(root, chosen, models, FOLDER, long=True), '']
    parts.append(_FOOT.format(megabytes=f'{total / 1e6:.1f}'))
    return '\n'.join(parts)


def _sections(models: Sequence[Shipped]):
    for metric in METRICS:
        for title, is_teacher in (('Teachers', True), ('Students', False)):
            chosen = [
                model
                for model in models
                if model.metric == metric and (model.metadata['Method'] == 'teacher') == is_teacher
            ]
            if chosen:
                yield f'{METRICS[metric].task}: {title.lower()}', chosen


def _table(
    root: Path, chosen: Sequence[Shipped], models: Sequence[Shipped], folder: Path, long: bool
) -> list[str]:
    """Give the lines of a table; the short one has only what tells the result."""
    metric = chosen[0].metric
    names = [
        'model',
        'method',
        'w',
        'seed',
        'iterations',
        metric,
        'over the student alone',
        'weights',
    ]
    names += ['stored as', 'log', 'student'] if long else []
    lines = [f'| {" | ".join(names)} |', '|---' * len(names) + '|']

    def link(text: str, path: str) -> str:
        return f'[{text}]({Path(os.path.relpath(path, folder)).as_posix()})'

    for model in chosen:
        about = model.metadata
        megabytes = (root / model.weights).stat().st_size / 1e6
        options = ', '.join(f'{key}={value}' for key, value in about.get('Options', {}).items())
        cells = [
            link(model.name, model.config),
            about['Method'] + (f' ({options})' if options else ''),
            about.get('Loss Weight', ''),
            about['Seed'],
            about['Iterations'],
            model.value,
            _gain(model, models),
            link(f'{megabytes:.2f} MB', model.weights),
        ]
        if long:
            student = about.get('Student', {}).get('Config', model.config)
            cells += [about['Stored As'], link(about['Log Records'], about['Log'])]
            cells += [link('config', student)]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return lines


def _gain(model: Shipped, models: Sequence[Shipped]) -> str:
    """Give the difference to the student alone of the same pair and seed."""
    about = model.metadata
    if about['Method'] in ('student', 'teacher'):
        return ''
    for other in models:
        same = all(other.metadata[key] == about[key] for key in ('Pair', 'Seed', 'Iterations'))
        if same and other.metadata['Method'] == 'student':
            return f'{float(model.value) - float(other.value):+.{METRICS[model.metric].digits}f}'
    return '-'


def with_part(root: Path, folder: str, models: Sequence[Shipped]) -> str:
    """Write the models of a method into its page, apart from what else is there.

    Args:
        root (Path): The repository.
        folder (str): Of the method, below configs.
        models (Sequence[Shipped]): All models whose weights come along.

    Returns:
        str: The page, as it is with the part or, if none of them is of this method, without it.
    """
    page = (root / 'configs' / folder / 'README.md').read_text(encoding='utf-8')
    page = re.sub(rf'{re.escape(_BEGIN)}\n.*?{re.escape(_END)}\n\n', '', page, flags=re.DOTALL)
    parts = []
    for metric in METRICS:
        chosen = [m for m in models if m.metric == metric and method_folder(root, m) == folder]
        if chosen:
            parts += _table(root, chosen, models, Path('configs') / folder, long=False)
            parts.append('')
    if not parts:
        return page
    text = '\n'.join([_BEGIN, _PART, *parts, _END, '', _BEFORE])
    before, found, after = page.partition(f'{_BEFORE}\n')
    if not found:
        raise ValueError(f"configs/{folder}/README.md has no line '{_BEFORE}' to write in front of")
    return f'{before}{text}\n{after}'
