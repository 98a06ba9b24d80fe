"""What a benchmark is measured with: images, checkpoint, schedule and device."""

import math
import os

import torch

from ..training import made_up_images, student_config

# Images with annotations in COCO's train2017: what an epoch of the zoo's detectors consists of.
COCO_IMAGES = 117_266


def make_batch(student, batch: int, size: tuple) -> dict:
    """Make random images of the channels that a model takes, with random annotations.

    Args:
        student (BaseModel): The model.
        batch (int): Number of images.
        size (tuple): Height and width.

    Returns:
        dict: ``inputs`` and ``data_samples``, not yet preprocessed.
    """
    inputs, data_samples = made_up_images(student, size, batch)
    return dict(inputs=inputs, data_samples=data_samples)


def default_size(cfg) -> tuple:
    """Give the size of the images that a config trains with.

    Args:
        cfg (Config): Of a distillation.

    Returns:
        tuple: Height and width.
    """
    preprocessor = student_config(cfg).model.get('data_preprocessor') or {}
    if preprocessor.get('size') is not None:
        return preprocessor['size']
    return 800, 1344  # MMDetection's, padded to a multiple of 32


def forget_pretrained(config) -> None:
    """Remove the weights that a model begins with: they are downloaded, and cost no time.

    Args:
        config (dict): Config of a model, changed in place.
    """
    if isinstance(config, dict):
        if isinstance(config.get('pretrained'), str):
            config['pretrained'] = None
        if (config.get('init_cfg') or {}) and 'Pretrained' in str(config['init_cfg']):
            config['init_cfg'] = None
        for value in config.values():
            forget_pretrained(value)


def find_checkpoint(path: str | None) -> str | None:
    """Find the teacher's checkpoint on this machine.

    Args:
        path (str | None): Path or URL.

    Returns:
        str | None: A file, if there is one.
    """
    if path and '://' in path:
        path = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(path))
    return path if path and os.path.isfile(path) else None


def schedule(cfg) -> tuple[int | None, int | None]:
    """Tell how many iterations a config trains for, and on how many GPUs.

    Args:
        cfg (Config): Of a training.

    Returns:
        tuple[int | None, int | None]: Both; None for iterations that only the data would tell.
    """
    batch = cfg.train_dataloader.batch_size
    total = (cfg.get('auto_scale_lr') or {}).get('base_batch_size', batch)
    if cfg.train_cfg.get('max_iters'):
        return cfg.train_cfg.max_iters, total // batch
    if 'train2017' in str(cfg.train_dataloader):
        return cfg.train_cfg.max_epochs * math.ceil(COCO_IMAGES / total), total // batch
    return None, total // batch
