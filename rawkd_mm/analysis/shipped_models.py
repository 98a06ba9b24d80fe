"""The models whose weights come along: what the metafiles say of them, and whether it is so."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from .shipped import shipped_folder
from .text_files import write_text

METAFILE = Path('configs/digit_scenes/metafile.yml')


class ZooError(Exception):
    """A model cannot be put beside the others, or is not as it was; the message says why."""


class Metric(NamedTuple):
    """How a metric is published.

    Attributes:
        logged: What validations call it.
        factor: The published number is the logged one, times this.
        digits: After the point.
        task: What it measures.
    """

    logged: str
    factor: int
    digits: int
    task: str


# what metafiles call it, as those of MMSegmentation and MMDetection do
METRICS = {
    'mIoU': Metric('mIoU', 1, 2, 'Semantic Segmentation'),
    'box AP': Metric('coco/bbox_mAP', 100, 1, 'Object Detection'),
}


class Shipped(NamedTuple):
    """A model with weights, as its metafile describes it.

    Attributes:
        entry: All of its metafile.
        metric: Key of ``METRICS``.
        value: What is published, with its digits.
    """

    entry: dict
    metric: str
    value: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.entry['Name']

    @property
    def config(self) -> str:
        """Path of its config, from the repository's root."""
        return self.entry['Config']

    @property
    def weights(self) -> str:
        """Path of its weights, from the repository's root."""
        return self.entry['Weights']

    @property
    def metadata(self) -> dict:
        """What the metafile says of its training."""
        return self.entry['Metadata']


def publish(metrics: Mapping[str, float]) -> tuple[str, str]:
    """Write the metric that is published of a model, with its digits.

    Args:
        metrics (Mapping[str, float]): Of a validation or a test, as they are logged.

    Returns:
        tuple[str, str]: Key of ``METRICS`` and the number, such as ('mIoU', '75.62').

    Raises:
        ZooError: If there is none of ``METRICS``.

    Example:
        >>> publish({'aAcc': 97.1, 'mIoU': 75.6})
        ('mIoU', '75.60')
        >>> publish({'coco/bbox_mAP': 0.688})
        ('box AP', '68.8')
    """
    for name, metric in METRICS.items():
        if metric.logged in metrics:
            return name, f'{metric.factor * metrics[metric.logged]:.{metric.digits}f}'
    logged = [metric.logged for metric in METRICS.values()]
    raise ZooError(f'one of the metrics {logged} is needed, got {sorted(metrics)}')


def read_metafile(path: Path) -> dict:
    """Read a metafile.

    Args:
        path (Path): It need not exist.

    Returns:
        dict: Its content, 'Collections' and 'Models'; both empty if there is no such file.
    """
    if not path.is_file():
        return dict(Collections=[], Models=[])
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def write_metafile(path: Path, content: dict) -> None:
    """Write a metafile, the same bytes for the same content.

    Args:
        path (Path): In a folder that exists.
        content (dict): See :func:`read_metafile`.
    """
    note = '# tools/dev/ship_models.py writes this.\n'
    write_text(path, note + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))


def read_shipped(root: Path) -> list[Shipped]:
    """List the models of all metafiles whose weights are files of the repository.

    Args:
        root (Path): The repository, or a folder with its model-index.yml and configs.

    Returns:
        list[Shipped]: In the order of the metafiles.

    Raises:
        ZooError: If a file of the list is missing, a checkpoint below configs/ is in no list, or no
            metric is published.
    """
    index = yaml.safe_load((root / 'model-index.yml').read_text(encoding='utf-8'))
    models = []
    for metafile in index['Import']:
        for entry in read_metafile(root / metafile)['Models']:
            weights = entry.get('Weights')
            if weights and '://' not in weights:
                models.append(_shipped(entry, metafile))
    for model in models:
        for path in (model.config, model.weights, model.metadata['Log']):
            if not (root / path).is_file():
                raise ZooError(
                    f'{model.name}: {path} is not there. tools/dev/ship_models.py without arguments '
                    'takes models without weights off the list'
                )
    listed = {model.weights for model in models}
    files = {path.relative_to(root).as_posix() for path in root.glob('configs/**/*.pth')}
    if files - listed:
        raise ZooError(f'{sorted(files - listed)} are in no metafile of model-index.yml')
    return models


def _shipped(entry: dict, metafile: str) -> Shipped:
    try:
        ((metric, value),) = entry['Results'][0]['Metrics'].items()
        return Shipped(entry, metric, f'{value:.{METRICS[metric].digits}f}')
    except (KeyError, IndexError, ValueError) as error:
        raise ZooError(
            f'{metafile}: {entry["Name"]} has weights, so that its Results must have one of the '
            f'metrics {list(METRICS)}, and no other; got {entry.get("Results")}'
        ) from error


def evaluate_with_tool(root: Path, config: str | Path, weights: str | Path) -> dict[str, float]:
    """Evaluate weights as ``python tools/test.py CONFIG WEIGHTS`` does, by this program.

    Args:
        root (Path): The folder in which the tool is started, where the config looks for its data.
        config (str | Path): From there.
        weights (str | Path): From there.

    Returns:
        dict[str, float]: The metrics, as the tool writes them.

    Raises:
        ZooError: If the tool fails, with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, shipped_folder('tools') / 'test.py', config, weights]
        command += ['--work-dir', folder]
        environment = {'OMP_NUM_THREADS': '1', **os.environ}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            end = '\n'.join(done.stdout.strip().splitlines()[-8:])
            raise ZooError(f'tools/test.py {config} {weights} failed:\n{end}')
        return json.loads(Path(folder, 'test_metrics.json').read_text())['metrics']
