"""What the tools read of pipelines and data sets: every form that mmseg and mmdet accept.

Seen beside the reported situations: an integer as a scale, a teacher's config without training data.
"""

import re
from functools import cache
from pathlib import Path

import mmcv.transforms
import numpy as np
import pytest
from calling import call, make_distill_config
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.utils import get_installed_path

from rawkd_mm import distill_config
from rawkd_mm.training import UsageError, class_names, load_config, training_images

RANGE = dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)], keep_ratio=True)
CROP = dict(type='RandomCrop', crop_size=(384, 600), crop_type='absolute_range')


def config(*steps, scope='mmseg', preprocessor=None, **dataset):
    dataset = dict(type='D', pipeline=list(steps), **dataset) if steps else None
    return Config(
        dict(
            default_scope=scope,
            model=dict(data_preprocessor=preprocessor or {}),
            train_dataloader=dataset and dict(dataset=dataset),
        )
    )


def step(kind, **kwargs):
    return dict(type=kind, **kwargs)


# steps, scope, what is found
PIPELINES = {
    'integer': ([step('Resize', scale=64)], 'mmseg', 'images resized to 64x64'),
    'width and height': ([step('Resize', scale=(96, 64))], 'mmseg', 'images resized to 64x96'),
    'keeping the ratio': (
        [step('Resize', scale=(600, 1000), keep_ratio=True)], 'mmdet', 'images resized to 600x1000'),
    'factor': ([step('Resize', scale=(64, 32)), step('Resize', scale_factor=0.5)], 'mmseg',
               'images resized to 16x32'),
    'factor alone': ([step('Resize', scale_factor=2.0)], 'mmseg', 'None'),
    'shortest edge': ([step('ResizeShortestEdge', scale=512, max_size=2048)], 'mmseg', 'None'),
    'choice of shortest edges': (
        [step('RandomChoiceResize', scales=[256, 512], resize_type='ResizeShortestEdge',
              max_size=2048)], 'mmseg', 'None'),
    'shortest edge, crop': (
        [step('RandomChoiceResize', scales=[256, 512], resize_type='ResizeShortestEdge',
              max_size=2048), step('RandomCrop', crop_size=(512, 1024))], 'mmseg',
        'crops of 512x1024'),
    'choice': ([RANGE], 'mmdet', 'images resized to 800x1333'),
    'choice of integers': ([step('RandomChoiceResize', scales=[64, 96])], 'mmseg',
                           'images resized to 96x96'),
    'choice, one': ([step('RandomChoiceResize', scales=(96, 64))], 'mmseg',
                    'images resized to 64x96'),
    'range': ([step('RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)],
              'mmseg', 'images resized to 512x2048'),
    'range of two': ([step('RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)],
                     'mmdet', 'images resized to 800x1333'),
    'fixed shape': ([step('FixShapeResize', width=96, height=64)], 'mmdet',
                    'images resized to 64x96'),
    'crop of mmseg': ([step('RandomCrop', crop_size=(32, 64))], 'mmseg', 'crops of 32x64'),
    'crop of mmdet': ([step('RandomCrop', crop_size=(32, 64))], 'mmdet', 'crops of 64x32'),
    'crop by its scope': ([step('mmdet.RandomCrop', crop_size=(32, 64))], 'mmseg',
                          'crops of 64x32'),
    'crop, square': ([step('RandomCrop', crop_size=32)], 'mmseg', 'crops of 32x32'),
    'central crop': ([step('CenterCrop', crop_size=(32, 64))], 'mmseg', 'crops of 64x32'),
    'central crop and padding': ([step('RandomCenterCropPad', crop_size=(512, 512))], 'mmdet',
                                 'crops of 512x512'),
    'relative crop': ([step('Resize', scale=(64, 64)), step('RandomCrop', crop_size=(0.5, 0.9),
                      crop_type='relative')], 'mmdet', 'None'),
    'relative range': ([step('RandomCrop', crop_size=(0.3, 0.3), crop_type='relative_range')],
                       'mmdet', 'None'),
    'absolute range': ([CROP], 'mmdet', 'None'),
    'crop by overlap': ([step('MinIoURandomCrop')], 'mmdet', 'None'),
    'overlap, resized': ([step('Expand'), step('MinIoURandomCrop'), step('Resize',
                         scale=(300, 300), keep_ratio=False)], 'mmdet', 'images resized to 300x300'),
    'crop, resized': ([step('RandomCrop', crop_size=(32, 32)), step('Resize', scale=(64, 64))],
                      'mmseg', 'images resized to 64x64'),
    'branches that agree': (
        [step('RandomChoice', transforms=[[RANGE], [RANGE, CROP, RANGE]])], 'mmdet',
        'images resized to 800x1333'),
    'branches that differ': (
        [step('RandomChoice', transforms=[[RANGE], [step('Resize', scale=64)]])], 'mmdet', 'None'),
    'sometimes': ([step('Resize', scale=64), step('RandomApply', transforms=[step('Resize',
                  scale=96)])], 'mmseg', 'None'),
    'nested': ([step('TransformBroadcaster', transforms=[step('Resize', scale=64)])], 'mmseg',
               'images resized to 64x64'),
    'padded': ([step('Resize', scale=(64, 32)), step('Pad', size=(64, 64))], 'mmdet',
               'images padded to 64x64'),
    'square': ([step('Resize', scale=(64, 32)), step('Pad', pad_to_square=True)], 'mmdet',
               'images padded to 64x64'),
    'mosaic': ([step('Mosaic', img_scale=(64, 32)), step('RandomAffine', border=(-32, -16)),
               step('MixUp', img_scale=(64, 32))], 'mmdet', 'crops of 32x64'),
    'mosaic of mmseg': ([step('RandomMosaic', prob=1.0, img_scale=(32, 64))], 'mmseg',
                        'images padded to 64x128'),
    'their own crop': ([step('MyCrop', crop_size=(32, 64))], 'mmseg', 'crops of 32x64'),
    'no size at all': ([step('LoadImageFromFile'), step('PackSegInputs')], 'mmseg', 'None'),
    'strange': ([step('Resize', scale='large'), step('RandomCrop', crop_size=None)], 'mmseg',
                'None'),
    'a class': ([step(mmcv.transforms.Resize, scale=64)], 'mmseg', 'images resized to 64x64'),
    'nothing': ([], 'mmseg', 'None'),
}  # fmt: skip


@pytest.mark.parametrize('name', PIPELINES)
def test_the_size_that_a_pipeline_gives(name):
    """Each form that a transform's size can have; what is not known is None."""
    steps, scope, expected = PIPELINES[name]
    assert str(training_images(config(*steps, scope=scope))) == expected


# Transforms that run as they are, on an image of 48x80.
REAL = [name for name in PIPELINES if name in (
    'integer', 'width and height', 'factor', 'crop of mmseg', 'crop, square', 'central crop',
    'crop, resized', 'padded', 'square', 'choice, one', 'nested')]  # fmt: skip


@pytest.mark.parametrize('name', REAL)
def test_it_is_what_the_transforms_do(name):
    """Run for real: the image's shape behind them."""
    import mmseg.datasets  # noqa: F401 (registers)

    steps, scope, expected = PIPELINES[name]
    steps = [s for s in steps if s['type'] != 'TransformBroadcaster'] or steps[0]['transforms']
    result = dict(img=np.zeros((200, 300, 3), np.uint8), img_shape=(200, 300))
    with DefaultScope.overwrite_default_scope('mmseg'):
        for given in steps:
            transform = TRANSFORMS.build(given)
            result = transform.transform(result)
    height, width = result['img'].shape[:2]
    assert expected.endswith(f' {height}x{width}')


PAD = step('BatchFixedSizePad', size=(96, 128))


@pytest.mark.parametrize(
    ('steps', 'preprocessor', 'expected'),
    [
        ([step('RandomCrop', crop_size=(32, 64))], dict(size=(32, 64)), 'crops of 32x64'),
        ([step('Resize', scale=64)], dict(size=(96, 96)), 'images padded to 96x96'),
        ([step('Resize', scale_factor=2.0)], dict(size=96), 'images padded to 96x96'),
        ([step('Resize', scale=64)], dict(size_divisor=32), 'images resized to 64x64'),
        (
            [step('RandomCrop', crop_size=(60, 97))],
            dict(size_divisor=32),
            'images padded to 64x128',
        ),
        ([step('Resize', scale=(99, 60))], dict(pad_size_divisor=32), 'images resized to 60x99'),
        ([step('Resize', scale=64)], dict(batch_augments=[PAD]), 'images padded to 96x128'),
        ([], dict(size=(96, 96)), 'images padded to 96x96'),
    ],
)
def test_the_preprocessor_pads(steps, preprocessor, expected):
    assert str(training_images(config(*steps, preprocessor=preprocessor))) == expected


PLAIN = dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b')),
             pipeline=[step('Resize', scale=64)])  # fmt: skip
OTHER = {**PLAIN, 'pipeline': [step('Resize', scale=96)]}
WRAPPED = {
    'repeated': (dict(type='RepeatDataset', times=3, dataset=PLAIN), '64x64'),
    'repeated twice': (dict(type='RepeatDataset', dataset=dict(type='X', dataset=PLAIN)), '64x64'),
    'joined': (dict(type='ConcatDataset', datasets=[PLAIN, PLAIN]), '64x64'),
    'joined, other sizes': (dict(type='ConcatDataset', datasets=[PLAIN, OTHER]), None),
    'of several images': (
        dict(type='MultiImageMixDataset', dataset=PLAIN, pipeline=[step('Resize', scale=32)]),
        '32x32'),
    'of several images, as they are': (
        dict(type='MultiImageMixDataset', dataset=PLAIN, pipeline=[step('MixUp')]), '64x64'),
    'a list': ([PLAIN, PLAIN], '64x64'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRAPPED)
def test_wrapped_data_sets(name):
    """RepeatDataset, ConcatDataset, MultiImageMixDataset, one within the other."""
    dataset, size = WRAPPED[name]
    cfg = Config(dict(default_scope='mmseg', model={}, train_dataloader=dict(dataset=dataset)))
    expected = None if size is None else f'images resized to {size}'
    assert class_names(cfg) == ('a', 'b')
    found = training_images(cfg)
    assert (found and str(found)) == expected


def test_names_of_classes(tmp_path):
    """Of the config, of a file, of the data set's class; and of none."""
    (tmp_path / 'names.txt').write_text('one\ntwo\n')

    def of(**dataset):
        dataset = dict(dataset=dict(dataset, pipeline=[]))
        return class_names(Config(dict(default_scope='mmseg', train_dataloader=dataset)))

    assert of(type='CityscapesDataset')[:2] == ('road', 'sidewalk')
    assert of(type='CityscapesDataset', metainfo=dict(classes=('a',))) == ('a',)
    assert of(type='BaseSegDataset', metainfo=dict(classes=str(tmp_path / 'names.txt'))) == (
        'one', 'two')  # fmt: skip
    assert of(type='NobodyKnowsThisDataset') is None
    assert class_names(Config(dict(train_dataloader=None))) is None


CASES = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32),
    backbone=dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4,
                  strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=dict(type='BN')),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1,
                     num_classes=4, norm_cfg=dict(type='BN'),
                     loss_decode=dict(type='CrossEntropyLoss')))
"""
STUDENT = CASES + """
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(
    type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c', 'd')),
    pipeline=[dict(type='Resize', scale=64), dict(type='PackSegInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
"""  # fmt: skip
EMPTY = 'train_dataloader = None\ntrain_cfg = None\noptim_wrapper = None\n'


def make(folder, student, teacher, **kwargs):
    (folder / 'student.py').write_text(student)
    (folder / 'teacher.py').write_text(teacher)
    return call(
        make_distill_config, '--student', 'student.py', '--teacher', 'teacher.py',
        '--teacher-ckpt', 'none.pth', '--no-check', '--method', 'cad', '-o', 'out.py', '--force',
        folder=folder, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize('teacher', [CASES, CASES + EMPTY], ids=['left out', 'None'])
def test_a_teacher_needs_no_training(tmp_path, teacher):
    """A teacher's config for inference: no data, no optimizer."""
    assert 'out.py is written' in make(tmp_path, STUDENT, teacher)


@pytest.mark.parametrize('student', [CASES, CASES + EMPTY], ids=['left out', 'None'])
def test_a_student_that_cannot_be_trained_is_refused(tmp_path, student):
    log = make(tmp_path, student, STUDENT, fails=True)
    assert 'the config has no train_dataloader, train_cfg, optim_wrapper, so that' in log
    assert not (tmp_path / 'out.py').exists()


def test_the_advice_says_what_the_data_are(tmp_path):
    """Images that are only resized are no crops."""
    teacher = STUDENT.replace('scale=64', 'scale=(96, 64)')
    log = make(tmp_path, STUDENT, teacher)
    assert (
        "Images of another size: the student trains on images resized to 64x64, the teacher's "
        'config on images resized to 64x96.'
    ) in log and 'rops' not in log
    teacher = STUDENT.replace(
        "dict(type='Resize', scale=64)", "dict(type='RandomCrop', crop_size=32)"
    )
    assert "the teacher's config on crops of 32x32" in make(tmp_path, STUDENT, teacher)
    # what cannot be read is left out of the advice
    teacher = STUDENT.replace('scale=64', 'scale_factor=0.5')
    assert 'another size' not in make(tmp_path, STUDENT, teacher)


def published(package):
    root = Path(get_installed_path(package)) / '.mim' / 'configs'
    return sorted(
        f'{package}::{path.relative_to(root)}'
        for path in root.glob('*/*.py')
        if not path.parent.name.startswith('_')
    )


@cache
def names():
    return [*published('mmseg'), *published('mmdet')]


def check(name):
    """Read a config as a student's and as a teacher's, up to the point before building.

    Gives whether it could be read at all: some need packages that are not installed.
    """
    try:
        cfg = distill_config.read_config(name, 'student')
    except UsageError as error:
        assert re.search(r'cannot be read|has no model', str(error)), error
        return False
    images, classes = training_images(cfg), class_names(cfg)
    size = distill_config.trial_size(cfg)
    assert min(size) >= 16 and all(isinstance(x, int) for x in size)
    written = distill_config.written_out(cfg)
    assert isinstance(written.get('type'), (str, type))
    assert classes is None or all(isinstance(c, str) for c in classes)
    try:
        distill_config.check_trainable(name, cfg)
    except UsageError as error:
        assert 'the config has no' in str(error)
        return True
    cfg.optim_wrapper.get('clip_grad')
    # MMSegmentation's names have the crop's height and width
    found = re.search(r'-(\d{2,})x(\d{2,})[_.]', name)
    says_otherwise = 'segmenter_vit-l_mask' in name  # it crops 640x640, whatever its name says
    if name.startswith('mmseg') and found and images is not None and not says_otherwise:
        assert images[:2] == tuple(map(int, found.groups())), (name, str(images))
    return True


def test_published_configs():
    """Every 60th config of both packages: read without a traceback, with the size of its name."""
    chosen = names()[::60]
    read = [name for name in chosen if check(name)]
    assert len(read) > 0.9 * len(chosen)


@pytest.mark.slow
def test_all_published_configs():
    read = [name for name in names() if check(name)]
    assert len(read) > 0.95 * len(names())


def test_sizes_of_published_configs():
    """As a reader finds them in the files."""
    for name, expected in {
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py': 'crops of 512x1024',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': 'images resized to 800x1333',
        'mmdet::detr/detr_r50_8xb2-150e_coco.py': 'images resized to 800x1333',
        'mmdet::ssd/ssd300_coco.py': 'images resized to 300x300',
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py': 'images resized to 640x640',
        'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py': 'crops of 640x640',
        'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py': 'images resized to 512x512',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': 'crops of 1024x1024',
    }.items():
        assert str(training_images(load_config(name))) == expected, name
