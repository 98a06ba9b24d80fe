"""CWD compares the scores of the main heads, whatever other classifiers a model has.

Reports: open-mmlab/mmrazor#392 and #323 (CWD on models with auxiliary heads).
"""

import argparse
import os
import warnings

import pytest
from helpers import build, pspnet
from mmengine.config import Config
from mmengine.utils import get_installed_path

from rawkd_mm import distill_config
from rawkd_mm.features import AutoFeatureError, find_classifier
from rawkd_mm.training import UsageError, load_config

CLASSES = 5
SIZE = (64, 64)


def head(kind, channels_in=32, index=3, **kwargs):
    given = dict(
        type=kind, in_channels=channels_in, in_index=index, channels=8, num_classes=CLASSES,
        norm_cfg=dict(type='BN'), align_corners=False, loss_decode=dict(type='CrossEntropyLoss'),
    )  # fmt: skip
    return {**given, **kwargs}


def with_heads(decode_head, auxiliary_head=None, kind='EncoderDecoder', **kwargs):
    config = pspnet(classes=CLASSES)
    config.update(type=kind, decode_head=decode_head, auxiliary_head=auxiliary_head, **kwargs)
    return build(config)


def stdc():
    """MMSegmentation's own STDC, whose last auxiliary head finds boundaries."""
    config = load_config('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py').model
    config.backbone.backbone_cfg.init_cfg = None
    boundary = config.auxiliary_head[-1]
    assert boundary.type == 'STDCHead' and boundary.num_classes == 2
    return build(config)


FCN = head('FCNHead', 16, 2, num_convs=1, concat_input=False)
MODELS = {
    'auxiliary': (lambda: with_heads(head('FCNHead', num_convs=1), FCN), 'decode_head.conv_seg'),
    'no auxiliary': (lambda: with_heads(head('FCNHead', num_convs=1)), 'decode_head.conv_seg'),
    'cascade': (
        lambda: with_heads(
            [FCN, head('OCRHead', ocr_channels=4)], kind='CascadeEncoderDecoder', num_stages=2
        ),
        'decode_head.1.conv_seg',
    ),
    # its classifiers of two further branches are called ..._conv_seg as well
    'DANet': (lambda: with_heads(head('DAHead', pam_channels=4), FCN), 'decode_head.conv_seg'),
    'STDC': (stdc, 'decode_head.conv_seg'),
}


def choose(student, teacher):
    args = argparse.Namespace(method='cwd', features=['auto'])
    pairs, _ = distill_config.choose_pairs(args, student, teacher, SIZE)
    return pairs


@pytest.mark.parametrize('name', MODELS)
def test_the_main_heads_classifier_is_compared(name):
    """CWD of a model with auxiliary heads, in a cascade, with boundary heads (mmrazor#392, #323)."""
    make, expected = MODELS[name]
    model, plain = make(), with_heads(head('FCNHead', num_convs=1, num_classes=model_outputs(name)))
    for student, teacher in ((model, plain), (plain, model)):
        ((ours, theirs),) = choose(student, teacher)
        assert ours.source.text == (expected if student is model else 'decode_head.conv_seg')
        assert theirs.source.text == (expected if teacher is model else 'decode_head.conv_seg')
        assert ours.shape[0] == theirs.shape[0] == model_outputs(name)


def model_outputs(name):
    return 19 if name == 'STDC' else CLASSES


def binary(**kwargs):
    return with_heads(head('FCNHead', num_convs=1, **kwargs))


@pytest.mark.parametrize(
    ('ours', 'theirs', 'numbers'),
    [
        (dict(num_classes=2, out_channels=1, threshold=0.5), dict(num_classes=2), (1, 2)),
        (dict(num_classes=2), dict(num_classes=2, out_channels=1, threshold=0.5), (2, 1)),
        (dict(num_classes=4), dict(num_classes=3), (4, 3)),
    ],
)
def test_other_numbers_of_outputs_are_refused(ours, theirs, numbers):
    """Binary heads with out_channels=1: both have two classes, and nothing can be compared."""
    text = rf'the student has {numbers[0]}, the teacher {numbers[1]} \(outputs of'
    with pytest.raises(UsageError, match=text):
        choose(binary(**ours), binary(**theirs))


def test_the_same_number_of_outputs_is_compared():
    """Two binary heads with one output each."""
    settings = dict(num_classes=2, out_channels=1, threshold=0.3)
    ((ours, theirs),) = choose(binary(**settings), binary(**settings))
    assert ours.shape == theirs.shape == (1, 8, 8)


def test_a_head_that_classifies_no_map_is_refused(mmdet):  # for the operators
    """PointRend's last head classifies points; its first one's scores are not the model's."""
    point = head('PointHead', [32], [0], num_fcs=1, coarse_pred_each_layer=True)
    fpn = head('FPNHead', [4, 8], [0, 1], feature_strides=[4, 8])
    model = with_heads([fpn, point], kind='CascadeEncoderDecoder', num_stages=2)
    with pytest.raises(AutoFeatureError, match=r'PointHead has no classifier'):
        find_classifier(model, 'student', (3, *SIZE))


def families():
    root = os.path.join(get_installed_path('mmseg'), '.mim', 'configs')
    return sorted(f for f in os.listdir(root) if not f.startswith('_'))


@pytest.mark.slow
@pytest.mark.parametrize('family', families())
def test_published_families(family):
    """One config of each folder of MMSegmentation: the main head's classifier, or a reason."""
    folder = os.path.join(get_installed_path('mmseg'), '.mim', 'configs', family)
    name = min((f for f in os.listdir(folder) if f.endswith('.py')), key=len)
    try:
        cfg = distill_config.read_config(f'mmseg::{family}/{name}', 'student')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model = distill_config.build_alone(cfg, 'student')
    except UsageError as error:
        pytest.skip(f'not installed: {error}')
    images = distill_config.trial_size(cfg)
    main = getattr(model, 'decode_head', None)
    last = main[-1] if isinstance(cfg.model.get('decode_head'), list) else main
    path = f'decode_head.{len(main) - 1}' if last is not main else 'decode_head'
    try:
        found = find_classifier(model, 'student', (3, *images))
    except AutoFeatureError as error:
        if not hasattr(last, 'conv_seg'):
            assert f'{type(last).__name__} has no' in str(error)
            return
        # BEiT and MAE take images of their own size only
        assert 'must match the size' in str(error) or 'too small' in str(error), error
        size = Config(dict(s=cfg.model.data_preprocessor)).s.size
        found = find_classifier(model, 'student', (3, *size))
    assert found.source.text == f'{path}.conv_seg'
    assert found.shape[0] == last.out_channels
