"""The student is trained with its own images: its own data_preprocessor, as when it is alone.

Public source: open-mmlab/mmsegmentation#3511 (mean and std written in the model, as MMSegmentation's
base models suggest, beside the data_preprocessor of the config's top level).
"""

import copy
import functools
import importlib.util
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import pair, preprocessor, pspnet, run
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from zoo import ROOT

from rawkd_mm import distill_config
from rawkd_mm.training import inline_models, student_config, teacher_config, training_images

sys.path.insert(0, str(ROOT / 'tools'))
import test as test_tool  # noqa: E402 (tools/test.py)

OWN = preprocessor(mean=[10.0, 20.0, 30.0], std=[5.0, 6.0, 7.0])
# as mmseg::_base_/models/*.py have it, without the size that a config adds in its model
TOP = dict(type='SegDataPreProcessor', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
TOP = dict(**TOP, bgr_to_rgb=True, pad_val=0, seg_pad_val=255)
WHOLE_TOP = dict(**TOP, size=(32, 32))
ABSENT = object()


def settings(value):
    """All that an object has been told, as plain values: written for these tests."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, nn.Module):
        content = {k: v for k, v in value.__dict__.items() if 'hooks' not in k}
        return [type(value).__qualname__, settings(content)]
    if isinstance(value, dict):
        return {str(k): settings(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings(v) for v in value]
    return f'{type(value).__qualname__} {value}'


def without_own():
    model = pspnet()
    model.pop('data_preprocessor')
    return model


def student_file(folder, own=ABSENT, top=ABSENT, name='student.py'):
    """A config file of a student alone."""
    model = without_own()
    if own is not ABSENT:
        model['data_preprocessor'] = own
    content = dict(model=model, default_scope='mmseg')
    if top is not ABSENT:
        content['data_preprocessor'] = top
    path = folder / name
    path.write_text(Config(copy.deepcopy(content)).pretty_text)
    return path


def distillation(file, way):
    """The distillation of a student's file, as people write it."""
    cfg = Config.fromfile(file)
    by_path = dict(cfg_path=str(file))
    cfg.model = dict(
        type='FrozenTeacherDistill',
        architecture=by_path if way in ('by path', 'inlined') else cfg.model,
        teacher=pspnet(8, 16),
        allow_random_teacher=True,
        distiller=dict(type='FeatureDistiller', loss=dict(type='CADLoss'), pairs=[pair()]),
    )
    cfg.custom_imports = dict(imports=['rawkd_mm'])
    if way == 'inlined':  # as dump_config.py writes it
        cfg = Config.fromstring(inline_models(cfg).pretty_text, '.py')
    return cfg


_names = iter(range(10**6))


def built_by_mmengine(cfg, folder):
    """The model that MMEngine's own Runner builds, as in mmseg's and mmdet's tools/train.py."""
    cfg = copy.deepcopy(cfg)
    folder = folder / f'run{next(_names)}'  # it gets a copy of the config
    cfg.update(work_dir=str(folder), experiment_name=f'own{next(_names)}', log_level='WARNING')
    return Runner.from_cfg(cfg).model


WAYS = ['written', 'by path', 'inlined']
CASES = {
    'own, other at the top': (OWN, WHOLE_TOP),
    'own, the top lacks a size': (OWN, TOP),  # as in mmseg's base models: fails in the training
    'own only': (OWN, ABSENT),
    'top only': (ABSENT, WHOLE_TOP),
    'own is None': (None, WHOLE_TOP),
    'top is None': (OWN, None),
    'neither': (ABSENT, ABSENT),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('case', CASES)
def test_student_has_the_preprocessor_that_it_has_alone(case, way, tmp_path):
    file = student_file(tmp_path, *CASES[case])
    alone = built_by_mmengine(Config.fromfile(file), tmp_path)
    cfg = distillation(file, way)
    distilled = built_by_mmengine(cfg, tmp_path)
    expected = settings(alone.data_preprocessor)
    assert settings(distilled.data_preprocessor) == expected
    assert settings(distilled.student.data_preprocessor) == expected
    # --student-alone, tools/test.py, the report
    reduced = built_by_mmengine(student_config(cfg), tmp_path)
    assert settings(reduced.data_preprocessor) == expected


def test_student_of_a_file_gets_the_top_level_of_that_file(tmp_path):
    """The distillation's config has a top level of its own, of another data set."""
    file = student_file(tmp_path, top=OWN)
    cfg = distillation(file, 'by path')
    cfg.data_preprocessor = WHOLE_TOP
    expected = settings(built_by_mmengine(Config.fromfile(file), tmp_path).data_preprocessor)
    for config in (cfg, inline_models(cfg), student_config(cfg)):
        assert settings(built_by_mmengine(config, tmp_path).data_preprocessor) == expected
    assert '10.0' in str(expected)


def test_teachers_images_are_made_from_the_students(tmp_path):
    """A teacher without a data_preprocessor of its own sees what the student sees."""
    file = student_file(tmp_path, OWN, WHOLE_TOP)
    cfg = distillation(file, 'written')
    cfg.model.teacher.pop('data_preprocessor')
    model = built_by_mmengine(cfg, tmp_path)
    assert model.frozen_teacher.renormalize is None
    assert teacher_config(cfg).model.data_preprocessor == OWN
    cfg.model.teacher.data_preprocessor = WHOLE_TOP
    renormalize = built_by_mmengine(cfg, tmp_path).frozen_teacher.renormalize
    image = torch.full((1, 3, 2, 2), 100.0)
    mean, std = (torch.tensor(OWN[k]).view(3, 1, 1) for k in ('mean', 'std'))
    theirs = [torch.tensor(TOP[k]).view(3, 1, 1) for k in ('mean', 'std')]
    expected = (image - theirs[0]) / theirs[1]
    assert torch.allclose(renormalize((image - mean) / std, None), expected, atol=1e-5)


def train(cfg, folder):
    """Train an iteration; gives the images that reached the student's backbone."""
    seen = []
    model = built_by_mmengine(cfg, folder)
    student = getattr(model, 'student', model)
    student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    run(model, folder, iters=2, batch=2)
    return torch.stack(seen)


def test_images_of_a_training(tmp_path):
    """Case 1: trained with ImageNet's mean, evaluated with its own: 4.15 mIoU instead of 42.16."""
    file = student_file(tmp_path, OWN, TOP)
    alone = train(Config.fromfile(file), tmp_path / 'alone')
    assert torch.equal(train(distillation(file, 'written'), tmp_path / 'written'), alone)
    raw = DATASETS.build(dict(type='RandomScenes'))[0]['inputs']
    mean, std = (torch.tensor(OWN[k]).view(3, 1, 1) for k in ('mean', 'std'))
    assert torch.allclose(alone[0, 0], (raw[[2, 1, 0]].float() - mean) / std)


def test_one_line_tells_what_is_not_used(tmp_path):
    logger = MMLogger.get_current_instance()
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:

        def told(top):
            lines.clear()
            cfg = distillation(student_file(tmp_path, OWN, top), 'written')
            if cfg.get('data_preprocessor'):
                cfg.model.data_preprocessor = cfg.data_preprocessor  # as the Runner does
            with DefaultScope.overwrite_default_scope('mmseg'):
                MODELS.build(cfg.model)
            return [line for line in lines if 'keeps its own data_preprocessor' in line]

        (line,) = told(WHOLE_TOP)
        assert 'differs in mean, std' in line and 'size' not in line
        (line,) = told({**WHOLE_TOP, 'std': None})
        assert 'cannot be built' in line and 'std' in line
        assert told(OWN) == told(ABSENT) == []
        # written otherwise, the same once it is built
        assert told({**OWN, 'mean': (10, 20, 30), 'pad_val': 0, 'test_cfg': None}) == []
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_tools_agree(tmp_path, monkeypatch):
    """make_distill_config.py, from the student's file; tools/test.py --tta."""
    monkeypatch.chdir(tmp_path)
    file = student_file(tmp_path, OWN, TOP)
    cfg = distill_config.read_config(str(file), 'student')
    assert distill_config.written_out(cfg).data_preprocessor == OWN
    assert training_images(cfg)[:2] == (32, 32)
    reduced = student_config(distillation(file, 'by path'))
    reduced.update(
        tta_model=dict(type='SegTTAModel'),
        tta_pipeline=[],
        test_dataloader=dict(dataset=dict()),
    )
    for config in (reduced, Config({**reduced.to_dict(), 'data_preprocessor': TOP})):
        test_tool.set_tta(config)
        config.pop('test_dataloader')
        model = built_by_mmengine(config, tmp_path)
        assert settings(model.module.data_preprocessor)[1]['_buffers']['mean'] == [
            [[10.0]],
            [[20.0]],
            [[30.0]],
        ]


class AnyModel(BaseModel):
    """Takes what any model is told, and has one convolution."""

    def __init__(self, data_preprocessor=None, init_cfg=None, **kwargs):
        super().__init__(data_preprocessor, None)
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.conv(inputs)


@functools.cache
def published():
    """All configs of mmseg and mmdet that have a model, as (package, file)."""
    found = []
    for package in ('mmseg', 'mmdet'):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            folder = Path(spec.origin).parent / '.mim' / 'configs'
            files = sorted(folder.glob('*/*.py'))
            found += [(package, str(f)) for f in files if not f.parent.name.startswith('_')]
    return found


def check_published(package, file):
    """Compare the students of a config; gives whether it has a data_preprocessor."""
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except OSError:
        return False  # MMDetection 3.3 ships some whose base is not there
    if 'model' not in cfg or 'type' not in cfg.model:
        return False
    cfg.model.type = AnyModel
    own = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        own.setdefault('data_preprocessor', cfg.data_preprocessor)  # as MMEngine's Runner does
    model = dict(
        type='FrozenTeacherDistill',
        architecture=cfg.model,
        teacher=dict(type=AnyModel),
        allow_random_teacher=True,
        distiller=dict(type='FeatureDistiller', loss=dict(type='CADLoss'), pairs=[pair('conv')]),
    )
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(package):
        try:
            alone = MODELS.build(own)
        except Exception as error:  # some of six channels cannot be built alone either
            with pytest.raises(type(error), match=re.escape(str(error))):
                MODELS.build(model)
            return False
        distilled = MODELS.build(model)
    assert settings(distilled.data_preprocessor) == settings(alone.data_preprocessor), file
    return type(alone.data_preprocessor) is not BaseDataPreprocessor


# the three whose own and top-level data_preprocessor differ, others with batch augmentations
CHOSEN = (
    'bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py',
    'vpd/vpd_sd_4xb8-25k_nyu-480x480.py',
    'vpd/vpd_sd_4xb8-25k_nyu-512x512.py',
    'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
    'yolox/yolox_s_8xb8-300e_coco.py',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
)


def test_published_configs(mmdet):
    """Student's data_preprocessor, field by field, over a sample of the published configs."""
    files = published()
    chosen = [x for x in files if x[1].endswith(CHOSEN)]
    assert len(chosen) == len(CHOSEN)
    assert sum(check_published(*x) for x in dict.fromkeys([*chosen, *files[::60]])) > 20


@pytest.mark.slow
def test_all_published_configs(mmdet):
    """The same over all of them, about three minutes."""
    checked = sum(check_published(*x) for x in published())
    assert checked > 1300
