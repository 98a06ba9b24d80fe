"""The student of a distillation without its teacher, and a distillation that begins with one.

Public source: none; found by reading and trying (``--student-alone`` lost a hook's settings,
``load_from`` of a plain student told that ``distiller.*`` is missing).
"""

import copy
import inspect
import sys

import pytest
import torch
from helpers import build, capture_log, distill, pair, pspnet, run
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmrazor.engine import hooks as mmrazor_hooks
from zoo import ROOT

from rawkd_mm import hooks as our_hooks
from rawkd_mm.hooks import NonFiniteLossHook
from rawkd_mm.training import AverageLossesHook, build_runner, student_config

BOTH = dict(
    type='FrozenTeacherDistill',
    architecture=pspnet(),
    teacher=pspnet(8, 16),
    allow_random_teacher=True,
    distiller=dict(type='FeatureDistiller', loss=dict(type='CADLoss'), pairs=[pair()]),
)


@HOOKS.register_module(force=True)
class TheirGeometryHook(Hook):
    """A user's own hook that looks at the features of a distillation."""

    needs_distillation = True


@HOOKS.register_module(force=True)
class TheirHook(Hook):
    """A user's own hook about anything else."""


def kept(*hooks, scope='mmseg', **kwargs):
    cfg = Config(dict(model=BOTH, custom_hooks=list(hooks), default_scope=scope, **kwargs))
    return student_config(copy.deepcopy(cfg))


def test_hooks_with_their_settings():
    hooks = [
        dict(type='NonFiniteLossHook', patience=3),
        dict(type='FeatureGeometryHook', interval=5),
        dict(type='LabelRangeHook'),
        dict(type='TeacherSanityHook'),
        dict(type='mmrazor.StopDistillHook', stop_epoch=1),
        dict(type='EMAHook', momentum=0.1),
        dict(type='TheirGeometryHook'),
        dict(type='TheirHook', priority='LOW'),
    ]
    stay = [hooks[i] for i in (0, 2, 5, 7)]
    assert list(kept(*hooks).custom_hooks) == stay
    assert 'custom_hooks' not in kept(hooks[1])


# which of ours a student alone has no use for
ABOUT_DISTILLATION = {
    'FeatureGeometryHook', 'TeacherSanityHook', 'StopDistillHook', 'RazorVisualizationHook',
    'UnlabelledImagesHook',
}  # fmt: skip


@pytest.mark.parametrize(
    'hook',
    [h for _, h in inspect.getmembers(our_hooks, inspect.isclass) if issubclass(h, Hook)],
)
def test_each_of_our_hooks(hook):
    kinds = [hook, f'rawkd_mm.hooks.{hook.__name__}']
    if hook.__name__ not in mmrazor_hooks.__all__:  # those in MMRazor's place are in its scope
        kinds.append(hook.__name__)
    for kind in kinds:
        stays = 'custom_hooks' in kept(dict(type=kind))
        assert stays == (hook.__name__ not in ABOUT_DISTILLATION), kind


@pytest.mark.parametrize('name', mmrazor_hooks.__all__)
@pytest.mark.parametrize('scope', ['mmseg', 'mmrazor', None])
def test_hooks_of_mmrazor_go(name, scope):
    hook_class = getattr(mmrazor_hooks, name)
    written = [dict(type=name, _scope_='mmrazor'), dict(type=hook_class)]
    if scope == 'mmrazor':
        written += [dict(type=name)]
    else:  # two of them are registered in MMEngine's scope, and have this name elsewhere only
        written += [dict(type=f'mmrazor.{name}')]
    for hook in written:
        assert 'custom_hooks' not in kept(hook, scope=scope), hook
        hooks = dict(visualization=hook, checkpoint=dict(type='CheckpointHook'))
        cfg = kept(default_hooks=hooks, scope=scope)
        assert list(cfg.default_hooks) == ['checkpoint']


def test_a_hook_that_is_built_already():
    """A Config may hold objects."""
    cfg = Config(dict(model=BOTH, default_scope='mmseg'))
    cfg._cfg_dict['custom_hooks'] = [NonFiniteLossHook(patience=4)]
    assert student_config(cfg).custom_hooks[0].patience == 4


def test_the_training_alone_has_the_hook_once(tmp_path, monkeypatch):
    """train.py --student-alone: the config's patience, not that of the hook that train.py adds."""
    sys.path.insert(0, str(ROOT / 'tools'))
    import train

    import rawkd_mm.training as utils

    content = dict(
        model=BOTH,
        custom_imports=dict(imports=['helpers', 'rawkd_mm']),
        custom_hooks=[dict(type='NonFiniteLossHook', patience=3), dict(type='FeatureGeometryHook')],
        default_scope='mmseg',
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            dataset=dict(type='RandomScenes', length=4),
        ),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01)),
        log_level='WARNING',
        experiment_name='student_alone',
    )
    (tmp_path / 'config.py').write_text(Config(copy.deepcopy(content)).pretty_text)
    runners = []

    def build_and_keep(cfg):
        runners.append(build_runner(cfg))
        return runners[0]

    monkeypatch.setattr(utils, 'build_runner', build_and_keep)
    arguments = ['train.py', str(tmp_path / 'config.py'), '--student-alone']
    monkeypatch.setattr(sys, 'argv', [*arguments, '--work-dir', str(tmp_path / 'run')])
    train.main()
    (runner,) = runners
    assert type(runner.model).__name__ == 'EncoderDecoder' and runner.iter == 1
    found = [hook.patience for hook in runner.hooks if isinstance(hook, NonFiniteLossHook)]
    assert found == [3]
    assert any(isinstance(hook, AverageLossesHook) for hook in runner.hooks)


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    return capture_log(monkeypatch)


def start_from(state, folder, lines, capsys, **kwargs):
    """Begin a distillation with a checkpoint, by MMEngine's load_from; gives model and messages."""
    torch.save(dict(state_dict=state, meta={}), folder / 'begin.pth')
    model = distill(seed=1)
    connectors = {k: v.clone() for k, v in model.distiller.state_dict().items()}
    frozen = dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0)))
    run(model, folder, iters=1, load_from=str(folder / 'begin.pth'), **frozen)
    return model, connectors, '\n'.join([*lines, capsys.readouterr().out])


def test_load_from_a_plain_student(tmp_path, lines, capsys):
    """Nothing is missing: all of the student's weights are there, and there were no connectors."""
    plain = build(pspnet())
    model, connectors, text = start_from(plain.state_dict(), tmp_path, lines, capsys)
    assert 'missing keys' not in text and 'unexpected key' not in text
    assert f"student's without connectors: the distillation's {len(connectors)} " in text
    loaded = {k: v for k, v in model.student.named_parameters()}
    assert all(torch.equal(loaded[k], v) for k, v in plain.named_parameters())
    after = model.distiller.state_dict()
    assert connectors and all(torch.equal(after[k], v) for k, v in connectors.items())


@pytest.mark.parametrize('of_a_distillation', [False, True])
def test_what_is_really_missing_is_told(of_a_distillation, tmp_path, lines, capsys):
    model = distill() if of_a_distillation else build(pspnet())
    state = model.state_dict()
    absent = 'decode_head.conv_seg.weight'
    del state[absent]
    connector = 'distiller.connectors.loss_cad_decode_head_bottleneck.conv.bias'
    if of_a_distillation:
        connector = next(k for k in state if k.startswith('distiller.'))
        del state[connector]
    _, _, text = start_from(state, tmp_path, lines, capsys)
    (told,) = [line for line in text.splitlines() if 'missing keys' in line][:1]
    assert absent in told
    assert (connector in told) == of_a_distillation
    assert ('distiller.' in told) == of_a_distillation


def test_the_loop_that_validates_the_teacher_becomes_the_plain_one():
    cfg = Config(
        dict(
            model=dict(
                type='FrozenTeacherDistill',
                architecture=dict(type='EncoderDecoder'),
                teacher=dict(type='EncoderDecoder'),
                distiller=dict(type='FeatureDistiller'),
            ),
            val_cfg=dict(type='mmrazor.SingleTeacherDistillValLoop', fp16=True),
            test_cfg=dict(type='TestLoop'),
        )
    )
    alone = student_config(cfg)
    assert alone.val_cfg == dict(type='ValLoop', fp16=True)
    assert alone.test_cfg == dict(type='TestLoop')
    assert cfg.val_cfg.type == 'mmrazor.SingleTeacherDistillValLoop'
