"""What the Runner of the tools refuses or warns of: empty datasets, another batch, bad checkpoints."""

import re

import pytest
import torch
from helpers import build, pspnet
from mmengine.config import Config
from mmengine.registry import DATASETS
from test_bad_checkpoints import CODE, HTML, with_code, written

from rawkd_mm.training import build_runner
from rawkd_mm.training.checkpoint import CheckpointError


def config(work_dir, **kwargs):
    """A student alone, to be trained by the tools' Runner."""
    given = dict(
        model=pspnet(),
        work_dir=str(work_dir),
        default_scope='mmseg',
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(type='RandomScenes', length=4),
        ),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        launcher='none',
        log_level='WARNING',
        experiment_name=f'bad{abs(hash(str(work_dir)))}',
    )
    return Config({**given, **kwargs})


def loader(dataset, workers=0, sampler='InfiniteSampler'):
    return dict(
        batch_size=2,
        num_workers=workers,
        sampler=dict(type=sampler, shuffle=False),
        dataset=dataset,
    )


EMPTY = dict(type='RandomScenes', length=0)
VALIDATION = dict(val_evaluator=dict(type='IoUMetric'), val_cfg=dict())


@pytest.mark.parametrize(
    'loaders',
    [
        pytest.param(dict(train_dataloader=loader(EMPTY)), id='no training images'),
        pytest.param(dict(train_dataloader=loader(EMPTY, workers=1)), id='no images for workers'),
        pytest.param(
            dict(VALIDATION, val_dataloader=loader(EMPTY, sampler='DefaultSampler')),
            id='no validation images',
        ),
    ],
)
def test_empty_dataset(tmp_path, loaders):
    with pytest.raises(ValueError, match='the dataset RandomScenes is empty'):
        build_runner(config(tmp_path, **loaders)).train()


def test_folder_without_images_of_this_suffix(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/1.png').write_bytes(b'')
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b')),
        img_suffix='.jpg',
        pipeline=[],
    )
    DATASETS.build(dict(dataset, _scope_='mmseg', img_suffix='.png')).full_init()
    with pytest.raises(ValueError) as error:
        build_runner(config(tmp_path, train_dataloader=loader(dataset))).train()
    message = str(error.value)
    assert 'the dataset BaseSegDataset is empty' in message
    assert str(tmp_path) in message and "'img_suffix': '.jpg'" in message


# The total batch


def warnings_of(tmp_path, caplog, **kwargs):
    runner = build_runner(config(tmp_path, **kwargs))
    runner.logger.addHandler(caplog.handler)
    runner.train()
    messages = [record.getMessage() for record in caplog.records]
    return [m for m in messages if 'learning rate is meant' in m], runner


@pytest.mark.parametrize(
    ('base', 'steps', 'parts'),
    [
        pytest.param(
            16, 1, ['batch of 16 ', 'has 2: 2 images x 1 processes', 'lr 0.00125 instead of 0.01'],
            id='config for 8 GPUs on one',
        ),
        pytest.param(1, 1, ['has 2:', 'lr 0.02 instead of 0.01'], id='larger batch'),
        pytest.param(
            16, 4, ['has 8: 2 images x 1 processes x 4 accumulated', 'lr 0.005 instead of 0.01'],
            id='accumulated, still another batch',
        ),
    ],
)  # fmt: skip
def test_another_total_batch(tmp_path, caplog, base, steps, parts):
    wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01), accumulative_counts=steps
    )
    (warning,), runner = warnings_of(
        tmp_path, caplog, auto_scale_lr=dict(base_batch_size=base), optim_wrapper=wrapper
    )
    for part in [*parts, '--auto-scale-lr']:
        assert part in warning
    assert runner.optim_wrapper.get_lr()['lr'] == [0.01], 'it only warns'


@pytest.mark.parametrize(
    'scale',
    [
        None,
        dict(enable=False),
        dict(base_batch_size=2),
        dict(base_batch_size=16, enable=True),
    ],
)
def test_total_batch_that_fits_or_is_scaled(tmp_path, caplog, scale):
    found, _ = warnings_of(tmp_path, caplog, auto_scale_lr=scale)
    assert found == []


# What the tools load


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        pytest.param(with_code, CODE, id='code'),
        pytest.param(lambda p: written(p, HTML), 'is a web page', id='web page'),
    ],
)
@pytest.mark.parametrize('how', ['load_from', 'resume', 'init_cfg'])
def test_tools_load_data_only(tmp_path, make, message, how):
    path = str(make(tmp_path / 'x.pth'))
    given = dict(load_from=path, resume=how == 'resume')
    if how == 'init_cfg':
        model = pspnet()
        model['init_cfg'] = dict(type='Pretrained', checkpoint=path)
        given = dict(model=model)
    with pytest.raises(CheckpointError) as error:
        build_runner(config(tmp_path, **given)).train()
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_tools_load_weights(tmp_path):
    model = build(pspnet())
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'x.pth')
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    runner = build_runner(
        config(tmp_path, load_from=str(tmp_path / 'x.pth'), optim_wrapper=wrapper)
    )
    runner.train()
    assert all(torch.equal(p, q) for p, q in zip(runner.model.parameters(), model.parameters()))
