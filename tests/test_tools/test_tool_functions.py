"""What the tools are made of, without starting them."""

import copy
import os
import subprocess

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from rawkd_mm import training as utils


def checkpoint_in(folder, iteration):
    path = folder / f'iter_{iteration}.pth'
    torch.save(dict(meta=dict(iter=iteration), state_dict=dict(), optimizer=dict()), path)
    os.utime(path, (iteration, iteration))
    return path


def test_resume_auto_prefers_the_work_dir_to_load_from(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='imagenet.pth', resume=False))
    (note,) = utils.set_resume(cfg, 'auto')
    assert note.startswith('Nothing to resume')
    assert (cfg.resume, cfg.load_from) == (False, 'imagenet.pth')
    path = checkpoint_in(tmp_path, 2)
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_2.pth')
    (note,) = utils.set_resume(cfg, 'auto')
    assert note == f'The training resumes from the last checkpoint, {path}.'
    assert (cfg.resume, cfg.load_from) == (True, str(path))
    path.unlink()
    with pytest.raises(utils.UsageError, match=r"'/gone/iter_2.pth' does not exist.*--resume PATH"):
        utils.set_resume(cfg, 'auto')


def test_resume_auto_passes_over_what_is_not_whole(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    whole, torn = checkpoint_in(tmp_path, 1), checkpoint_in(tmp_path, 2)
    (tmp_path / 'last_checkpoint').write_text(str(torn))
    os.truncate(torn, 100)
    passed_over, note = utils.set_resume(cfg, 'auto')
    assert passed_over.startswith(f"Not resumed from '{torn}': it was cut off")
    assert note == f'The training resumes from the newest whole checkpoint, {whole}.'
    assert cfg.load_from == str(whole)


def test_resume_path(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    url = 'https://example.org/iter_2.pth'
    assert utils.set_resume(cfg, url) == [f'The training resumes from {url}.']
    assert (cfg.resume, cfg.load_from) == (True, url)
    with pytest.raises(utils.UsageError, match='--resume nowhere.pth: no such file.*--resume auto'):
        utils.set_resume(cfg, 'nowhere.pth')
    path = checkpoint_in(tmp_path, 2)
    utils.set_resume(cfg, str(path))
    assert cfg.load_from == str(path)
    os.truncate(path, 100)
    with pytest.raises(utils.UsageError, match='iter_2.pth: it was cut off.*--resume auto for'):
        utils.set_resume(cfg, str(path))


def test_resumable_checkpoints():
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=7))))
    assert len(utils.use_resumable_checkpoints(cfg)) == 1
    assert cfg.default_hooks.checkpoint == dict(type='ResumableCheckpointHook', interval=7)
    assert utils.use_resumable_checkpoints(cfg) == []
    cfg = Config(dict())  # MMEngine's default
    utils.use_resumable_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint == dict(type='ResumableCheckpointHook', interval=1)
    for hook in (None, dict(type='MyHook')):
        cfg = Config(dict(default_hooks=dict(checkpoint=hook)))
        (note,) = utils.use_resumable_checkpoints(cfg)
        assert f'default_hooks.checkpoint is {hook}' in note
        assert cfg.default_hooks.checkpoint == hook


def test_auto_scale_lr_needs_a_base(tmp_path):
    with pytest.raises(utils.UsageError, match='auto_scale_lr=None'):
        utils.set_auto_scale_lr(Config(dict()))
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16)))
    utils.set_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_amp(device, monkeypatch):
    monkeypatch.setattr('rawkd_mm.training.amp.get_device', lambda: device)
    name = dict(cpu='Bf16OptimWrapper', cuda='AmpOptimWrapper')[device]
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))))
    assert utils.set_amp(cfg, False) == []
    notes = utils.set_amp(cfg, True)
    assert cfg.optim_wrapper.type == name
    assert cfg.optim_wrapper.get('loss_scale') == dict(cpu=None, cuda='dynamic')[device]
    assert len(notes) == dict(cpu=1, cuda=0)[device]
    (note,) = utils.set_amp(cfg, True)
    assert note.startswith('--amp changes nothing')
    cfg.optim_wrapper.type = 'MyWrapper'
    with pytest.raises(utils.UsageError, match="optim_wrapper.type is 'MyWrapper'"):
        utils.set_amp(cfg, True)


def test_sync_batchnorm_keeps_its_hooks_and_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.SyncBatchNorm(4)))
    norm, weight = model[1][0], model[1][0].weight
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert utils.replace_sync_batchnorm(model) == ['1.0']
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert model[1][0] is norm and norm.weight is weight
    expected = nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(norm(x), expected(x))
    assert len(seen) == 1
    assert model[1].state_dict().keys() == {f'0.{k}' for k in expected.state_dict()}
    assert utils.replace_sync_batchnorm(model) == []


def test_sync_batchnorm_on_one_process_and_in_training():
    """A copy, as EMA makes one, is still BN."""
    model = nn.Sequential(nn.SyncBatchNorm(4))
    utils.replace_sync_batchnorm(model)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    copy.deepcopy(model)(x).sum().backward()
    assert x.grad is not None


DISTILLATION = dict(
    default_scope='mmseg',
    model=dict(
        type='FrozenTeacherDistill',
        architecture=dict(cfg_path='mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
        teacher=dict(
            cfg_path='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py', pretrained=True
        ),
        teacher_ckpt='teacher.pth',
        distiller=dict(type='FeatureDistiller'),
    ),
    custom_hooks=[
        dict(type='FeatureGeometryHook'),
        dict(type='mmrazor.StopDistillHook', stop_epoch=1),
        dict(type='EMAHook'),
    ],
)


def test_student_config():
    cfg = Config(copy.deepcopy(DISTILLATION))
    assert utils.is_distillation(cfg)
    student = utils.student_config(cfg)
    assert not utils.is_distillation(student)
    assert student.model.type == 'EncoderDecoder'
    assert student.model.backbone.depth == 18
    assert student.model.data_preprocessor.size == (512, 1024)
    assert [hook['type'] for hook in student.custom_hooks] == ['EMAHook']
    assert MODELS.build(student.model).decode_head.channels == 128
    # the student's own data_preprocessor goes before that of the top level, as alone
    cfg.data_preprocessor = dict(type='SegDataPreProcessor', size=(64, 64))
    assert utils.student_config(cfg).model.data_preprocessor.size == (512, 1024)
    cfg.model.architecture = dict(type='EncoderDecoder')
    assert utils.student_config(cfg).model.data_preprocessor.size == (64, 64)
    plain = Config(dict(model=dict(type='EncoderDecoder')))
    assert utils.student_config(plain).to_dict() == plain.to_dict()


def test_teacher_config():
    cfg = Config(copy.deepcopy(DISTILLATION))
    teacher = utils.teacher_config(cfg)
    assert not utils.is_distillation(teacher) and utils.is_distillation(cfg)
    assert teacher.model.backbone.depth == 101
    assert teacher.model.data_preprocessor.size == (512, 1024)
    # one that has no data_preprocessor gets the student's images
    cfg.model.teacher = dict(type='EncoderDecoder')
    cfg.data_preprocessor = dict(type='SegDataPreProcessor', size=(64, 64))
    assert utils.teacher_config(cfg).model.data_preprocessor.size == (512, 1024)
    cfg.model.architecture = dict(type='EncoderDecoder')
    assert utils.teacher_config(cfg).model.data_preprocessor.size == (64, 64)


def test_inline_models():
    cfg = utils.inline_models(Config(copy.deepcopy(DISTILLATION)))
    assert cfg.model.architecture.backbone.depth == 18
    assert cfg.model.architecture.pretrained == 'open-mmlab://resnet18_v1c'
    teacher = cfg.model.teacher
    assert teacher.backbone.depth == 101
    # its checkpoint has all weights
    assert teacher.pretrained is None
    assert 'init_cfg' not in teacher
    assert (teacher._scope_, teacher.data_preprocessor.size) == ('mmseg', (512, 1024))


def test_resolve_model_errors(tmp_path):
    with pytest.raises(utils.UsageError, match="cfg_path='nowhere.py'"):
        utils.resolve_model(dict(cfg_path='nowhere.py'))
    with pytest.raises(utils.UsageError, match=r"comes with \['backbone'\]"):
        utils.resolve_model(dict(cfg_path='nowhere.py', backbone=dict()))
    loop = tmp_path / 'loop.py'
    loop.write_text(f'model = dict(architecture=dict(cfg_path={str(loop)!r}), teacher=dict())')
    with pytest.raises(utils.UsageError, match='loop.py.* is the config of a distillation'):
        utils.resolve_model(dict(cfg_path=str(loop)))
    (tmp_path / 'empty.py').write_text('a = 1')
    with pytest.raises(utils.UsageError, match='has no model'):
        utils.resolve_model(dict(cfg_path=str(tmp_path / 'empty.py')))


def test_make_paths_relative():
    cfg = Config(dict(a=dict(b=['/home/me/project/x/../data', 'data', 3]), c=('/elsewhere/file',)))
    changed, left = utils.make_paths_relative(cfg, ['/home/me/project'])
    assert (changed, left) == ({'a.b.0': 'data'}, {'c.0': '/elsewhere/file'})
    assert cfg.to_dict() == dict(a=dict(b=['data', 'data', 3]), c=('/elsewhere/file',))


_LEAVE = """
import atexit, glob, sys
import torch
from torch import distributed, nn
from rawkd_mm.training import leave_processes

atexit.register(print, 'exit function')
leave_processes()  # nothing to leave: goes on
distributed.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
print('unflushed', end=' ')
leave_processes()
print('not reached')
"""


def test_leave_processes_ends_without_shutting_python_down(tmp_path, fast_python):
    done = subprocess.run(
        [fast_python, '-c', _LEAVE, tmp_path / 'store'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'unflushed exit function'
