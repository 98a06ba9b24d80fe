"""Names that are not registered, and features that do not belong together."""

import re

import pytest
import torch
from helpers import build, distill, feature_distiller, pair, pspnet
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmseg.registry import MODELS

# Names


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        pytest.param(
            dict(distiller=feature_distiller(loss=dict(type='LADLos'))),
            "loss_lad.*: loss: there is no 'LADLos' .*closest are LADLoss",
            id='unknown loss',
        ),
        pytest.param(
            dict(distiller=feature_distiller(loss=dict(type='cadloss'))),
            "no 'cadloss' .*closest are CADLoss",
            id='loss in lower case',
        ),
        pytest.param(
            dict(distiller=feature_distiller(loss=dict(type='mmrazor.ChannelWiseDivergense'))),
            "no 'mmrazor.ChannelWiseDivergense' .*closest are ChannelWiseDivergence",
            id="unknown loss of MMRazor's",
        ),
        pytest.param(
            dict(distiller=feature_distiller(loss=dict(type='Xyzzy'))),
            "no 'Xyzzy' .*nothing has a similar name.*custom_imports",
            id='loss like nothing else',
        ),
        pytest.param(
            dict(distiller=dict(feature_distiller(), type='FeaturesDistiler')),
            "distiller: there is no 'FeaturesDistiler' .*closest are FeatureDistiller",
            id='unknown distiller',
        ),
        pytest.param(
            dict(distiller=feature_distiller(pair(align=dict(type='ConvConnector')))),
            "align: there is no 'ConvConnector' .*Connector",
            id='unknown connector',
        ),
        pytest.param(
            dict(distiller=feature_distiller(student_connector=dict(type='MGDConector'))),
            "student_connector: there is no 'MGDConector' .*closest are MGDConnector",
            id='unknown connector of the student',
        ),
        pytest.param(
            dict(distiller=feature_distiller(pair('decode_head.bottlenek'))),
            "has no module 'decode_head.bottlenek'; the closest are 'decode_head.bottleneck'",
            id='unknown feature',
        ),
        pytest.param(
            dict(distiller=feature_distiller(pair('decode_head.bottleneck', 'neck'))),
            "EncoderDecoder has no module 'neck'",
            id='feature that only the student has',
        ),
    ],
)
def test_unknown_name(config, message):
    with pytest.raises(ValueError) as error:
        distill(**config)
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


# Features


@MODELS.register_module(force=True)
class Copies(BaseModel):
    """Makes several features of an image, as shifted windows do, when its batch has several."""

    def __init__(self, copies, always=True):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.body = torch.nn.Identity()
        self.copies = copies
        self.always = always

    def forward(self, inputs, data_samples=None, mode='tensor'):
        copies = self.copies if self.always or len(inputs) > 1 else 1
        x = self.body(self.conv(inputs).repeat(copies, 1, 1, 1))
        return dict(loss=x.mean()) if mode == 'loss' else x


def copies(n, **kwargs):
    return dict(type='Copies', copies=n, **kwargs)


@pytest.mark.parametrize(
    ('always', 'counts'),
    [
        pytest.param(True, '1 images, the teacher of 3', id='batch sizes, when built'),
        pytest.param(False, '2 images, the teacher of 6', id='batch sizes, in training'),
    ],
)
def test_features_of_another_batch_size(always, counts):
    with pytest.raises(RuntimeError, match=f'loss_cad_body: the student gave features of {counts}'):
        algorithm = distill(pair('body'), student=copies(1), teacher=copies(3, always=always))
        algorithm(torch.ones(2, 3, 8, 8), mode='loss')


# Models that do not belong together


def warnings_of(caplog, **kwargs):
    logger = MMLogger.get_instance(f'bad{id(kwargs)}', log_level='WARNING')
    logger.addHandler(caplog.handler)
    distill(**kwargs)
    return [r.getMessage() for r in caplog.records if 'classes' in r.getMessage()]


def test_number_of_classes_of_the_models(caplog):
    (warning,) = warnings_of(caplog, teacher=pspnet(8, 16, classes=7))
    assert 'The student has 5 classes and the teacher 7.' in warning
    caplog.clear()
    assert warnings_of(caplog) == []


def test_backbones_classes_are_none_of_the_heads():
    from rawkd_mm.training.build_model import number_of_classes

    model = build(pspnet())
    model.backbone.num_classes = 1000  # as backbones of ImageNet have it
    assert number_of_classes(model) == 5
    assert number_of_classes(torch.nn.Conv2d(1, 1, 1)) is None
