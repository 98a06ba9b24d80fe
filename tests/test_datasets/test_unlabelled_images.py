"""Folders and lists of images without labels, read by the transforms of mmseg and mmdet."""

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import build, capture_log, pspnet, retinanet
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from rawkd_mm.datasets import UnlabelledImages, UnreadableImageError
from rawkd_mm.features import is_unlabelled

LOAD = dict(type='LoadImageFromFile')
SEG = [
    LOAD,
    dict(type='RandomResize', scale=(64, 48), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=1.0),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]


def scope(name):
    return DefaultScope.overwrite_default_scope(name)


def make(folder, name='mmseg', **kwargs):
    kwargs.setdefault('pipeline', [LOAD, dict(type='PackSegInputs')])
    with scope(name):
        dataset = DATASETS.build(dict(type='UnlabelledImages', data_root=str(folder), **kwargs))
    return dataset


def picture(number, size=(40, 56)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def write(path, number=0, size=(40, 56)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(number, size))
    return path


@pytest.fixture
def folder(tmp_path):
    """Five images in folders, beside what is none."""
    for number, name in enumerate(('b/2.PNG', 'a.bmp', 'b/1.png', 'b/c/deep.Tiff', 'z.ppm')):
        write(tmp_path / 'images' / name, number)
    for name in ('notes.txt', 'b/labels.json', '.hidden.png', '._b.png', '.git/x.png'):
        path = tmp_path / 'images' / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'nothing')
    return tmp_path / 'images'


@pytest.fixture
def log(monkeypatch):
    return capture_log(monkeypatch, logging.WARNING)


def test_a_folder_is_searched_with_all_below(folder):
    dataset = make(folder)
    names = [os.path.relpath(dataset.get_data_info(i)['img_path'], folder) for i in range(5)]
    assert len(dataset) == 5
    assert names == ['a.bmp', 'b/1.png', 'b/2.PNG', 'b/c/deep.Tiff', 'z.ppm']
    np.testing.assert_array_equal(dataset[2]['inputs'].permute(1, 2, 0), picture(0))


def test_links_to_folders_are_followed_and_loops_end(folder, tmp_path):
    write(tmp_path / 'elsewhere' / 'far.png')
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    (folder / 'b' / 'loop').symlink_to(folder)
    names = [Path(make(folder).get_data_info(i)['img_path']).name for i in range(6)]
    assert names == ['a.bmp', '1.png', '2.PNG', 'deep.Tiff', 'far.png', 'z.ppm']


@pytest.mark.parametrize('suffix', ['.jpg', '.JPEG', '.webp', '.pgm', '.tif', '.gif'])
def test_what_mmcv_reads_is_found_and_read(tmp_path, suffix):
    Image.fromarray(picture(0)).convert('L' if suffix == '.pgm' else 'RGB').save(
        tmp_path / f'x{suffix}'
    )
    backend = dict(LOAD, imdecode_backend='pillow') if suffix == '.gif' else LOAD
    dataset = make(tmp_path, pipeline=[backend, dict(type='PackSegInputs')])
    assert dataset[0]['inputs'].shape == (3, 40, 56)


def test_a_list_names_images_in_its_order(folder, tmp_path):
    (tmp_path / 'list.txt').write_text('z.ppm\n\nb/1.png\r\n')
    dataset = make(folder, ann_file=str(tmp_path / 'list.txt'))
    assert [Path(dataset.get_data_info(i)['img_path']).name for i in range(2)] == ['z.ppm', '1.png']
    (folder / 'inside.txt').write_text('a.bmp\n')
    assert len(make(folder, ann_file='inside.txt')) == 1, 'relative to data_root'
    assert len(make(folder, indices=3)) == 3


def test_samples_say_that_they_are_unlabelled(folder):
    sample = make(folder)[0]['data_samples']
    assert is_unlabelled(sample)
    assert 'gt_sem_seg' not in sample
    assert sample.img_path.endswith('a.bmp') and sample.ori_shape == (40, 56)
    from helpers import samples

    assert not is_unlabelled(samples(1)[0])


def test_augmentation_of_mmseg_gives_what_its_own_data_set_gives(folder):
    """The same random numbers, the same image as from BaseSegDataset in test mode."""
    from mmseg.datasets import BaseSegDataset

    with scope('mmseg'):
        reference = BaseSegDataset(
            data_root=str(folder / 'b'),
            data_prefix=dict(img_path=''),
            img_suffix='.png',
            metainfo=dict(classes=('a', 'b'), palette=[[0] * 3] * 2),
            test_mode=True,  # it does not ask for label maps
            pipeline=SEG,
        )
    for seed in range(4):
        np.random.seed(seed)
        expected = reference[0]['inputs']
        np.random.seed(seed)
        assert torch.equal(make(folder, pipeline=SEG)[1]['inputs'], expected)


def test_mmseg_preprocessor_takes_them(folder):
    model = build(pspnet())
    batch = pseudo_collate([make(folder, pipeline=SEG)[i] for i in range(3)])
    data = model.data_preprocessor(batch, True)
    assert data['inputs'].shape == (3, 3, 32, 32)
    assert all(map(is_unlabelled, data['data_samples']))


def test_mmdet_transforms_and_preprocessor_take_them(folder, mmdet):
    pipeline = [
        LOAD,
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(32, 32), allow_negative_crop=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackDetInputs'),
    ]
    dataset = make(folder, 'mmdet', pipeline=pipeline)
    model = build(retinanet())
    data = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), True)
    assert data['inputs'].shape == (2, 3, 32, 32)
    sample = data['data_samples'][0]
    assert is_unlabelled(sample) and 'bboxes' not in sample.gt_instances
    assert sample.batch_input_shape == (32, 32)


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_any_number_of_workers(folder, workers):
    loader = DataLoader(make(folder), batch_size=2, num_workers=workers, collate_fn=pseudo_collate)
    paths = [s.img_path for batch in loader for s in batch['data_samples']]
    assert [Path(path).name for path in paths] == ['a.bmp', '1.png', '2.PNG', 'deep.Tiff', 'z.ppm']


# Bad input; rows of tests/bad_input/README.md


def refused(error, *parts, **kwargs):
    with pytest.raises(error) as info:
        dataset = make(**kwargs)
        for index in range(len(dataset)):
            dataset[index]
    for part in parts:
        assert part in str(info.value), f'{part!r} is not in {info.value}'


def test_no_such_folder(tmp_path):
    refused(FileNotFoundError, 'nowhere', 'is no folder', os.getcwd(), folder=tmp_path / 'nowhere')


def test_folder_without_images(tmp_path):
    refused(FileNotFoundError, 'no image in', 'nothing at all', folder=tmp_path)
    (tmp_path / 'readme.md').write_text('')
    refused(FileNotFoundError, 'only .md', '.png', 'ann_file', folder=tmp_path)


def test_list_that_names_what_is_not_there(folder, tmp_path):
    file = tmp_path / 'list.txt'
    file.write_text('a.bmp\nb/3.png\nb/4.png\n')
    kwargs = dict(folder=folder, ann_file=str(file))
    refused(FileNotFoundError, 'names 2 files', 'b/3.png', 'relative to', **kwargs)
    file.write_text('\n')
    refused(FileNotFoundError, 'is empty', **kwargs)
    refused(FileNotFoundError, 'other.txt', 'is no file', folder=folder, ann_file='other.txt')


def damage(folder):
    (folder / 'b' / '1.png').write_bytes(b'no image')
    (folder / 'b' / '2.PNG').write_bytes(b'')


def test_unreadable_image_is_named(folder):
    damage(folder)
    refused(UnreadableImageError, 'b/1.png', 'cannot be read', folder=folder)
    with pytest.raises(UnreadableImageError, match='b/1.png'):
        list(DataLoader(make(folder), num_workers=1, collate_fn=pseudo_collate))


def test_unreadable_image_is_skipped_if_asked_for(folder, log):
    damage(folder)
    dataset = make(folder, skip_unreadable=True)
    for _ in range(2):
        names = [Path(dataset[i]['data_samples'].img_path).name for i in range(5)]
        assert names == ['a.bmp', 'deep.Tiff', 'deep.Tiff', 'deep.Tiff', 'z.ppm']
    assert len(log) == 2, 'one warning for each'
    assert 'b/1.png' in log[0] and 'b/2.PNG' in log[1] and 'Skipped' in log[0]


def test_no_image_can_be_read(tmp_path):
    for name in 'ab':
        (tmp_path / f'{name}.png').write_bytes(b'no image')
    refused(
        UnreadableImageError, 'none of the 2 images', str(tmp_path),
        folder=tmp_path, skip_unreadable=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('step', 'parts'),
    [
        pytest.param(dict(type='LoadAnnotations'), ['LoadAnnotations loads labels'], id='loads labels'),
        pytest.param(
            dict(type='RandomCrop', crop_size=(8, 8), cat_max_ratio=0.75),
            ['RandomCrop(cat_max_ratio=0.75)', 'Use cat_max_ratio=1'],
            id='looks at the labels of a crop',
        ),
        pytest.param(
            dict(type='RandomApply', transforms=[dict(type='LoadAnnotations')]),
            ['LoadAnnotations loads labels'],
            id='loads labels within another transform',
        ),
        pytest.param(
            dict(type='GenerateEdge'), ['GenerateEdge needs labels', 'gt_seg_map'],
            id='needs a label map',
        ),
    ],
)  # fmt: skip
def test_transform_that_needs_labels(folder, step, parts):
    refused(
        ValueError, 'UnlabelledImages', *parts,
        folder=folder, pipeline=[LOAD, step, dict(type='PackSegInputs')],
    )  # fmt: skip


def test_transform_of_mmdet_that_needs_boxes(folder, mmdet):
    steps = [dict(type='RandomAffine'), dict(type='FilterAnnotations')]
    for step in steps:
        refused(
            ValueError, f'{step["type"]} needs labels', 'gt_bboxes',
            folder=folder, name='mmdet', pipeline=[LOAD, step, dict(type='PackDetInputs')],
        )  # fmt: skip


def test_other_failures_stay_what_they_are(folder):
    def fails(results):
        raise KeyError('something')

    with pytest.raises(KeyError, match='something'):
        make(folder, pipeline=[LOAD, fails])[0]
    assert isinstance(make(folder), UnlabelledImages)
