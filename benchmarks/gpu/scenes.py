"""The training that training.py and two_processes.py run: the quickstart's pair on larger scenes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CONFIG = (
    ROOT / 'configs/quickstart/'
    'cad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py'
)


class Setting(NamedTuple):
    """How large a training is.

    Attributes:
        size: Height and width of the scenes.
        train: Number of scenes to train with.
        val: Number of scenes to validate with, at the end.
        batch: Images in an iteration of a process.
        workers: Processes that load images.
    """

    size: int
    train: int
    val: int
    batch: int
    workers: int


LARGE = Setting(size=256, train=480, val=48, batch=16, workers=4)
SMALL = Setting(size=48, train=16, val=4, batch=4, workers=0)


def make_scenes(setting: Setting, folder: Path) -> None:
    """Make the data set in a folder; one that is there is left as it is.

    Args:
        setting (Setting): Of the training.
        folder (Path): Where to.

    Raises:
        subprocess.CalledProcessError: If it cannot be made; the output has the reason.
    """
    from rawkd_mm.analysis.shipped import make_digit_scenes

    make_digit_scenes(folder, setting.size, train=setting.train, val=setting.val)


def make_training(setting: Setting, data: Path, iterations: int, interval: int, path: Path) -> None:
    """Write the config of a training: CAD with the teacher that comes with this package.

    Args:
        setting (Setting): Of the training.
        data (Path): The data set.
        iterations (int): Its length.
        interval (int): Iterations between two checkpoints.
        path (Path): The config file to write.
    """
    from rawkd_mm.training import inline_models, load_config

    cfg = inline_models(load_config(str(CONFIG)))
    for model in (cfg.model.architecture, cfg.model.teacher):
        model.data_preprocessor.size = (setting.size, setting.size)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data.resolve())
        loader.update(batch_size=setting.batch, num_workers=setting.workers)
        loader.persistent_workers = setting.workers > 0
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.param_scheduler[0].total_steps = iterations
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor.window_size = 1  # the loss of each iteration, not a mean of several
    cfg.default_hooks.checkpoint.update(interval=interval, max_keep_ckpts=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(path))


def start(config: Path, work_dir: Path, *args, environment=None, output=None) -> subprocess.Popen:
    """Start tools/train.py in mixed precision.

    Args:
        config (Path): The config.
        work_dir (Path): Where logs and checkpoints go.
        *args: Further arguments.
        environment (dict, optional): Variables to set. Defaults to None.
        output (file, optional): What it prints to. Defaults to None, as this process.

    Returns:
        subprocess.Popen: The process.
    """
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir, '--amp']
    command = [str(part) for part in (*command, *args)]
    print('$', *command, flush=True)
    environment = {**os.environ, **(environment or {})}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=output and subprocess.STDOUT
    )


def logged(work_dir: Path) -> list[dict]:
    """Give what a training has logged in each iteration, of all runs in its folder, oldest first.

    Args:
        work_dir (Path): Its folder.

    Returns:
        list[dict]: ``step``, ``loss`` and so on; ``run``, which run in the folder it is of; and
        ``mIoU`` in the last one of a whole training.
    """
    from rawkd_mm.analysis.training_logs import read_sessions

    return [
        {**entry, 'run': run}
        for run, session in enumerate(read_sessions(work_dir))
        for entry in session
    ]
