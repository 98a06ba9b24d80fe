"""make_distill_config.py writes what the zoo has: levels, losses, connectors, clipping, weights.

Sources of the values: the papers and released configs that configs/*/README.md name.
"""

import argparse
import copy

import pytest
import torch
from calling import call, make_distill_config
from helpers import build, faster_rcnn, pspnet, retinanet, upernet_swin
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from zoo import CONFIGS, read

from rawkd_mm import distill_config
from rawkd_mm.features import FeatureSource, dry_run
from rawkd_mm.training import load_config

METHODS = distill_config.METHODS
# The zoo's ablations: another feature than the tool chooses.
ABLATIONS = ('_backbone_',)
SIZE = (128, 128)


def zoo_configs():
    """Every config of the zoo's distillations, but for its ablations and the quickstart's."""
    return sorted(
        f'{method}/{path.name}'
        for method in METHODS
        for path in (CONFIGS / method).glob('*.py')
        if not any(x in path.name for x in ABLATIONS)
    )


@pytest.fixture(scope='module')
def published():
    """Builds student and teacher of a config of the zoo as they are; the last pair is kept."""
    kept = {}

    def build_pair(name):
        cfg = read(name)
        teacher_cfg = load_config(cfg.model.teacher.cfg_path)
        student_cfg = copy.deepcopy(cfg)
        student_cfg.model = cfg.model.architecture
        key = repr((student_cfg.model.to_dict(), cfg.model.teacher.to_dict()))
        if key not in kept:
            kept.clear()
            kept[key] = [
                distill_config.build_alone(c, role)
                for c, role in ((student_cfg, 'student'), (teacher_cfg, 'teacher'))
            ]
        return kept[key]

    return build_pair


def two_stages(width=8):
    config = faster_rcnn(16, width)
    config.train_cfg.rpn.sampler.add_gt_as_proposals = False
    return config


def narrow(name):
    """Models of the same kinds and with the same paths, narrow: they cost next to nothing."""
    kinds = dict(retinanet=retinanet, pspnet=pspnet, upernet=upernet_swin)
    kinds['faster-rcnn'] = two_stages
    (make,) = (make for kind, make in kinds.items() if f'_{kind}' in name.partition('_')[2])
    return [build(make()), build(make())]


def features(model, texts):
    """The tensors that features' names stand for, in one forward."""
    sources = [FeatureSource.parse(text) for text in texts]
    found = dry_run(model, (3, *SIZE), sources, 'model').features
    return [found[source] for source in sources]


def plain(value):
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def check(name, student, teacher):
    cfg = read(name)
    method = name.partition('/')[0]
    args = argparse.Namespace(
        method=method, features=['auto'], teacher='zoo::teacher', teacher_ckpt='t.pth'
    )
    chosen = distill_config.choose_method(method, student)
    pairs, _ = distill_config.choose_pairs(args, student, teacher, SIZE)
    inherited, _ = distill_config.find_inherited(args, chosen, student, teacher)
    ours = distill_config.make_model(args, None, chosen, pairs, None, {}, inherited)
    zoo = cfg.model
    assert ours.get('init_student') == zoo.get('init_student')
    assert plain(ours['distiller']['loss']) == plain(zoo.distiller.loss)
    for key in ('student_connector', 'teacher_connector'):
        assert plain(ours['distiller'].get(key)) == plain(zoo.distiller.get(key)), key
    written, theirs = ours['distiller']['pairs'], zoo.distiller.pairs
    assert len(written) == len(theirs)
    for role, model in (('student', student), ('teacher', teacher)):
        a = features(model, [p[role] for p in written])
        b = features(model, [p[role] for p in theirs])
        for text, x, y in zip([p[role] for p in theirs], a, b):
            assert x.shape == y.shape and torch.equal(x, y), (role, text)
    for one, other in zip(written, theirs):
        rest = [plain({k: v for k, v in p.items() if k not in ('student', 'teacher')})
                for p in (one, other)]  # fmt: skip
        assert rest[0] == rest[1]
    # the zoo's students clip nothing of their own
    clip = cfg.optim_wrapper.get('clip_grad')
    assert plain(chosen.optim_wrapper.get('clip_grad')) == plain(clip)


def by_pair(name):
    return name.partition('_')[2].partition('_')[2]


def sample():
    """One config for each method and kind of student."""
    parts = ('pspnet-r18_8xb2-80k_cityscapes', '_retinanet-r50', '_faster-rcnn-r50')
    swin = ('naive/', 'md/')
    return [
        name
        for name in zoo_configs()
        if any(part in name for part in parts)
        or (name.startswith(swin) and 'swin-t_8xb2-80k_cityscapes' in name)
    ]


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('name', sorted(sample(), key=by_pair))
def test_tool_and_zoo(name):
    """PSPNet and UPerNet; RetinaNet (five levels, FGD and MGD inherit); Faster R-CNN (four levels)."""
    check(name, *narrow(name))


@pytest.mark.slow
@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('name', sorted(zoo_configs(), key=by_pair))
def test_tool_and_zoo_at_full_size(name, published):
    check(name, *published(name))


def test_the_zoo_is_not_empty():
    """68 pairs and methods: those above would also pass without any."""
    names = zoo_configs()
    assert {name.partition('/')[0] for name in names} == {
        'lad', 'cad', 'naive', 'md', 'nfd', 'cwd', 'kl', 'mgd', 'fgd', 'fkd'}  # fmt: skip
    assert len(names) > 50


def write(folder, name, model):
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=copy.deepcopy(model),
            train_dataloader=dict(
                batch_size=2, dataset=dict(type='CocoDataset',
                                           pipeline=[dict(type='Resize', scale=(256, 256))])),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-4), clip_grad=None
            ),
        )
    )  # fmt: skip
    cfg.dump(str(folder / f'{name}.py'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), folder / f'{name}.pth')


def made(folder, method, student, teacher):
    for name, model in (('student', student), ('teacher', teacher)):
        write(folder, name, model)
    log = call(
        make_distill_config, '--student', 'student.py', '--teacher', 'teacher.py',
        '--teacher-ckpt', 'teacher.pth', '--method', method, '-o', 'out.py', '--force',
        folder=folder,
    )  # fmt: skip
    return log, Config.fromfile(folder / 'out.py')


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('method', ['fgd', 'mgd', 'fkd', 'cad'])
def test_written_for_a_two_stage_detector(tmp_path, method):
    """The fifth level of its neck, which only the RPN sees, is left out by three methods."""
    log, cfg = made(tmp_path, method, two_stages(), two_stages(16))
    levels = 5 if method == 'cad' else 4
    assert [p.student for p in cfg.model.distiller.pairs] == [f'neck[{i}]' for i in range(levels)]
    note = f'Left out, as {method.upper()} takes the levels that the RoI head reads: neck[4].'
    assert (note in log) == (levels == 4)
    assert 'init_student' not in cfg.model and 'One iteration' in log


@pytest.mark.usefixtures('mmdet')
def test_written_for_a_retinanet(tmp_path):
    """It begins with the teacher's neck and head if they fit, and else says so."""
    wide = retinanet(16, 8)  # the same neck and head, a teacher of another backbone
    wide['backbone'] = dict(wide['backbone'], depth=34)
    log, cfg = made(tmp_path, 'fgd', retinanet(16, 8), wide)
    assert cfg.model.init_student == ['neck', 'bbox_head'] and 'One iteration' in log
    log, cfg = made(tmp_path, 'mgd', retinanet(16, 8), retinanet(32, 8))
    assert 'init_student' not in cfg.model
    assert 'MGD lets a RetinaNet begin with the neck and the head of its teacher.' in log
    assert "the teacher's neck has other parameters" in log
    log, cfg = made(tmp_path, 'fkd', retinanet(16, 8), wide)
    assert 'init_student' not in cfg.model and 'begin with' not in log
