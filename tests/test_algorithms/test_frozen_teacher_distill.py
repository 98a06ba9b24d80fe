"""The algorithm: what is in its checkpoints, how it stops, and that a run can be resumed."""

import copy
import gc
import re

import pytest
import torch
from helpers import (
    BOTTLENECK,
    Watch,
    bitwise_equal,
    build,
    count_runs,
    distill,
    feature_distiller,
    images,
    pair,
    preprocessor,
    pspnet,
    retinanet,
    run,
    samples,
    total,
    train_statistics,
    upernet_swin,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import get_state_dict, save_checkpoint
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from rawkd_mm.algorithms import FrozenTeacherDistill
from rawkd_mm.training.build_model import build_model

CAD_BOTTLENECK = 'distill.loss_cad_decode_head.bottleneck'
CONNECTOR = 'distiller.connectors.loss_cad_decode_head_bottleneck.conv_module.conv.'


def train_a_little(algorithm, steps=2):
    """Change everything that can be trained, BatchNorm statistics included."""
    optimizer = torch.optim.SGD(algorithm.parameters(), lr=0.1)
    algorithm.train()
    for seed in range(steps):
        optimizer.zero_grad()
        total(algorithm(images(seed=seed), samples(seed=seed), mode='loss')).backward()
        optimizer.step()
    return algorithm


def outputs(model):
    with torch.no_grad():
        return model.eval()(images(), mode='tensor')


# In-place modules


@pytest.mark.parametrize('config', [pspnet(8, 16), upernet_swin()])
def test_no_module_works_in_place(config):
    assert any(getattr(m, 'inplace', False) for m in build(config).modules())
    path = (
        BOTTLENECK if config['decode_head']['type'] == 'PSPHead' else 'decode_head.fpn_bottleneck'
    )
    algorithm = distill(pair(path), student=config, teacher=config)
    for model in (algorithm.student, algorithm.teacher):
        assert [n for n, m in model.named_modules() if getattr(m, 'inplace', False)] == []


def test_in_place_modules_can_be_kept():
    algorithm = distill(module_inplace=True, teacher_module_inplace=True)
    for model in (algorithm.student, algorithm.teacher):
        assert any(getattr(m, 'inplace', False) for m in model.modules())


# A checkpoint is the student


def test_state_dict_is_the_students_and_the_connectors():
    algorithm = distill()
    names = list(algorithm.state_dict())
    plain = list(build(pspnet()).state_dict())
    assert names == [*plain, f'{CONNECTOR}weight', f'{CONNECTOR}bias']
    assert list(get_state_dict(algorithm)) == names
    assert list(algorithm.state_dict(prefix='x.')) == [f'x.{name}' for name in names]
    metadata = algorithm.state_dict()._metadata
    assert metadata['backbone.stem.1']['version'] == 2
    assert not [name for name in metadata if name.startswith(('architecture', 'teacher'))]


def test_state_dict_loads_into_the_plain_student():
    algorithm = train_a_little(distill())
    state = algorithm.state_dict()
    plain = build(pspnet())
    assert not torch.equal(outputs(plain), outputs(algorithm))
    result = plain.load_state_dict(state, strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys == [f'{CONNECTOR}weight', f'{CONNECTOR}bias']
    assert torch.equal(outputs(plain), outputs(algorithm))


def test_state_dict_loads_back_and_stays_as_it_was():
    algorithm, other = train_a_little(distill()), distill(seed=1)
    state = algorithm.state_dict()
    names = list(state)
    result = other.load_state_dict(state)  # strict
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert list(state) == names
    assert bitwise_equal(other.state_dict(), state)


def test_plain_student_checkpoint_loads_too():
    plain, algorithm = build(pspnet()), distill(seed=1)
    connector = algorithm.state_dict()[f'{CONNECTOR}weight'].clone()
    result = algorithm.load_state_dict(plain.state_dict())  # strict
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(algorithm.state_dict()[f'{CONNECTOR}weight'], connector)
    assert torch.equal(outputs(plain), outputs(algorithm))


def test_checkpoint_of_mmrazors_algorithm_loads():
    torch.manual_seed(7)
    theirs = build(
        dict(
            type='mmrazor.SingleTeacherDistill',
            architecture=pspnet(),
            teacher=pspnet(8, 16),
            distiller=feature_distiller(),
        )
    )
    state = theirs.state_dict()
    assert {name.partition('.')[0] for name in state} == {'architecture', 'teacher', 'distiller'}
    ours = distill(seed=1)
    teacher = copy.deepcopy(ours.teacher.state_dict())
    result = ours.load_state_dict(state)  # strict
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(v, state[f'architecture.{k}']) for k, v in build_state(ours).items())
    assert torch.equal(ours.state_dict()[f'{CONNECTOR}weight'], state[f'{CONNECTOR}weight'])
    # our teacher has weights of its own
    assert bitwise_equal(ours.teacher.state_dict(), teacher)


def build_state(algorithm):
    return {k: v for k, v in algorithm.state_dict().items() if not k.startswith('distiller.')}


def test_unknown_and_missing_names_are_still_reported():
    algorithm = distill()
    state = algorithm.state_dict()
    state['backbone.nonsense'] = state.pop('backbone.stem.0.weight')
    with pytest.raises(RuntimeError, match='stem.0.weight') as error:
        algorithm.load_state_dict(state)
    assert 'nonsense' in str(error.value)


def test_mmengine_saves_and_loads(tmp_path):
    algorithm = train_a_little(distill())
    path = str(tmp_path / 'x.pth')
    save_checkpoint(dict(state_dict=get_state_dict(algorithm), meta={}), path)
    other, plain = distill(seed=1), build(pspnet())
    load_checkpoint(other, path, strict=True)
    load_checkpoint(plain, path)
    assert bitwise_equal(other.state_dict(), algorithm.state_dict())
    assert torch.equal(outputs(plain), outputs(algorithm))


def test_checkpoint_of_a_run_is_the_student(tmp_path):
    algorithm = distill()
    run(algorithm, tmp_path, iters=2)
    checkpoint = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    assert list(checkpoint['state_dict']) == list(algorithm.state_dict())
    assert bitwise_equal(checkpoint['state_dict'], algorithm.state_dict())
    plain = build(pspnet())
    load_checkpoint(plain, str(tmp_path / 'iter_2.pth'))
    assert torch.equal(outputs(plain), outputs(algorithm))


def test_child_with_a_reserved_name_is_refused():
    student = build(pspnet())
    student.teacher = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match=r"submodules named \['teacher'\]"):
        distill(student=student)


# Copies, EMA, optimizer


def count_models():
    gc.collect()
    return sum(type(x) is EncoderDecoder for x in gc.get_objects())


def test_copy_shares_the_teacher():
    algorithm = distill()
    before = count_models()
    twin = copy.deepcopy(algorithm)
    assert twin.teacher is algorithm.teacher
    assert twin.student is not algorithm.student
    assert count_models() == before + 1, 'the student is copied, and nothing else'


def test_moving_a_copy_leaves_the_teacher_where_it_is():
    algorithm = distill()
    twin = copy.deepcopy(algorithm).double()
    assert {p.dtype for p in twin.parameters()} == {torch.float64}
    assert {p.dtype for p in algorithm.teacher.parameters()} == {torch.float32}
    algorithm.double()
    assert {p.dtype for p in algorithm.teacher.parameters()} == {torch.float64}


def test_copy_distils_like_the_original():
    algorithm = distill(pair(), pair('backbone[3]'))
    twin = copy.deepcopy(algorithm)
    results = []
    for model in (algorithm, twin, algorithm):
        torch.manual_seed(0)
        results.append(model(images(), samples(), mode='loss'))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_ema_wrapper():
    algorithm = distill()
    average = ExponentialMovingAverage(algorithm, momentum=0.5)
    average.update_parameters(algorithm)
    train_a_little(algorithm)
    average.update_parameters(algorithm)
    state = average.state_dict()
    assert set(state) == {'steps'} | {f'module.{name}' for name in algorithm.state_dict()}
    fresh = ExponentialMovingAverage(distill(seed=1))
    fresh.load_state_dict(state)
    assert bitwise_equal(fresh.module.state_dict(), average.module.state_dict())
    assert torch.equal(outputs(average), outputs(fresh.module))


def test_ema_hook(tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.5)]
    algorithm = distill()
    run(algorithm, tmp_path, iters=3, hooks=hooks)
    checkpoint = torch.load(tmp_path / 'iter_3.pth', weights_only=False)
    averaged, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    assert list(averaged) == list(algorithm.state_dict())
    assert set(trained) == {'steps'} | {f'module.{name}' for name in averaged}
    weight = 'backbone.layer4.1.conv2.weight'
    assert torch.equal(trained[f'module.{weight}'], algorithm.state_dict()[weight])
    assert not torch.equal(averaged[weight], trained[f'module.{weight}'])
    plain = build(pspnet())
    assert plain.load_state_dict(averaged, strict=False).missing_keys == []

    resumed = distill(seed=1)
    run(resumed, tmp_path, iters=4, hooks=hooks, resume=True)
    again = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    assert set(again['ema_state_dict']) == set(trained)
    assert again['ema_state_dict']['steps'] == 4


def test_optimizer_has_no_teacher_parameter():
    algorithm = distill()
    config = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}, norm_decay_mult=0.0),
    )
    groups = build_optim_wrapper(algorithm, config).param_groups
    given = {id(p) for group in groups for p in group['params']}
    wanted = {id(p) for p in algorithm.student.parameters()}
    wanted |= {id(p) for p in algorithm.distiller.connectors.parameters()}
    assert wanted <= given
    assert not given & {id(p) for p in algorithm.teacher.parameters()}
    # MMEngine puts an empty group with a scalar in front
    assert sum(p.dim() > 0 for group in groups for p in group['params']) == len(wanted)
    backbone = {id(p) for p in algorithm.student.backbone.parameters()}
    assert all(
        (group['lr'] == pytest.approx(0.01)) == (id(p) in backbone)
        for group in groups
        for p in group['params']
    )


# Prediction


def test_prediction_runs_the_student_only():
    algorithm = train_a_little(distill()).eval()
    plain = build(pspnet()).eval()
    plain.load_state_dict(algorithm.state_dict(), strict=False)
    runs = count_runs(algorithm.teacher)
    raw = torch.randint(0, 256, (3, 32, 32)).to(torch.uint8)
    data = dict(inputs=[raw, raw // 2], data_samples=samples())
    for step in ('val_step', 'test_step'):
        given = getattr(algorithm, step)(copy.deepcopy(data))
        expected = getattr(plain, step)(copy.deepcopy(data))
        for a, b in zip(given, expected):
            assert torch.equal(a.seg_logits.data, b.seg_logits.data)
    assert torch.equal(algorithm(images(), mode='tensor'), plain(images(), mode='tensor'))
    assert runs == []
    recorders = algorithm.distiller.student_recorders.recorders.values()
    assert not any(recorder.data_buffer for recorder in recorders)


# Stopping


def test_features_are_those_of_the_modules():
    algorithm = distill(pair(), pair('backbone[3]')).eval()
    expected = {}
    for role in ('student', 'teacher'):
        model = getattr(algorithm, role)
        for path in ('decode_head.bottleneck', 'backbone'):
            model.get_submodule(path).register_forward_hook(
                lambda m, i, output, key=(role, path): expected.__setitem__(key, output),
                prepend=True,  # the teacher stops in the hook behind its last feature
            )
    features = algorithm.extract_features(images(), samples())
    assert list(features) == [p.name for p in algorithm.distiller.pairs]
    for path, (student, aligned, teacher) in zip(
        ('decode_head.bottleneck', 'backbone'), features.values()
    ):
        given = [expected[role, path] for role in ('student', 'teacher')]
        given = [x[3] if path == 'backbone' else x for x in given]
        assert torch.equal(student, given[0]) and torch.equal(teacher, given[1])
        assert aligned.shape == teacher.shape and not student.requires_grad
    connector = algorithm.distiller.connectors['loss_cad_decode_head_bottleneck']
    with torch.no_grad():
        student, aligned, _ = features['loss_cad_decode_head.bottleneck']
        assert torch.equal(connector(student), aligned)
    # and nothing is kept, so that a training goes on
    algorithm.train()
    total(algorithm(images(), samples(), mode='loss')).backward()


def test_features_of_mmrazors_distiller_are_refused():
    algorithm = distill(distiller=dict(type='ConfigurableDistiller'))
    with pytest.raises(TypeError, match='not by ConfigurableDistiller'):
        algorithm.extract_features(images(), samples())


def test_teacher_does_not_run_once_stopped(tmp_path):
    algorithm = distill()
    runs = count_runs(algorithm.teacher)
    teacher = copy.deepcopy(algorithm.teacher.state_dict())
    hook = dict(type='mmrazor.StopDistillHook', stop_epoch=1)
    runner = run(algorithm, tmp_path, epochs=3, length=4, hooks=[hook])
    assert runner.iter == 6
    assert len(runs) == 2
    assert bitwise_equal(algorithm.teacher.state_dict(), teacher)


def test_losses_once_stopped():
    algorithm = distill()
    algorithm.distillation_stopped = True
    torch.manual_seed(0)
    losses = algorithm(images(), samples(), mode='loss')
    torch.manual_seed(0)
    expected = algorithm.student(images(), samples(), mode='loss')
    assert {n for n in losses if n.startswith('distill')} == {'distill.loss_stopped'}
    assert losses['distill.loss_stopped'] == 0
    for name, value in expected.items():
        torch.testing.assert_close(losses[f'student.{name}'], value)
    total(losses).backward()
    for parameter in algorithm.distiller.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_nothing_left_to_train_is_an_error():
    algorithm = distill(teacher=pspnet(8, 8), calculate_student_loss=False)
    algorithm.distillation_stopped = True
    with pytest.raises(RuntimeError, match='nothing is left to train'):
        algorithm(images(), samples(), mode='loss')


def test_two_processes_go_on_after_the_stop(two_processes):
    one, two = (found['stopped'] for found in two_processes)
    assert one['wrapper'] == 'MMDistributedDataParallel'
    for found in (one, two):
        # 8 images, 2 processes, batch 2: two iterations an epoch
        assert found['iterations'] == 6
        assert found['runs'] == 2
    assert any(
        not torch.equal(one['before'][name], one['own_state'][name])
        for name in one['before']
        if name.endswith('weight')
    )
    # the processes saw different images, so that equal weights come from equal gradients
    trained = [n for n in one['own_state'] if 'running' not in n]
    assert all(torch.equal(one['own_state'][n], two['own_state'][n]) for n in trained)
    assert bitwise_equal(one['teacher'], two['teacher'])


def test_wrapper_saves_and_loads_the_student(two_processes):
    found = two_processes[0]['stopped']
    own = list(found['own_state'])
    assert own[: len(found['plain'])] == found['plain']
    assert all(name.startswith('distiller.connectors.') for name in own[len(found['plain']) :])
    assert list(found['state']) == [f'module.{name}' for name in own]
    assert (found['missing'], found['unexpected']) == ([], [])
    assert bitwise_equal(found['reloaded'], found['state'])


# Resuming


def _without_dropout():
    config = pspnet()
    for head in ('decode_head', 'auxiliary_head'):
        config[head]['dropout_ratio'] = 0.0
    return config


@pytest.mark.parametrize(
    'optimizer',
    [dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-2), dict(type='AdamW', lr=1e-3)],
)
def test_resumed_run_is_the_uninterrupted_one(tmp_path, optimizer):
    def train(folder, iters, seed=0, **kwargs):
        algorithm = distill(pair(), pair('backbone[3]'), student=_without_dropout(), seed=seed)
        frozen = distill(student=_without_dropout()).teacher
        algorithm.teacher.load_state_dict(frozen.state_dict())
        run(
            algorithm,
            tmp_path / folder,
            iters=iters,
            save_every=3,
            optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
            **kwargs,
        )
        return torch.load(tmp_path / folder / f'iter_{iters}.pth', weights_only=False)

    whole = train('whole', 6)
    train('parts', 3)
    parts = train('parts', 6, seed=1, resume=True)
    assert bitwise_equal(parts['state_dict'], whole['state_dict'])
    states = [checkpoint['optimizer']['state'] for checkpoint in (parts, whole)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][name]))
    # and the resumed part did change the weights
    third = torch.load(tmp_path / 'parts' / 'iter_3.pth', weights_only=False)
    assert not torch.equal(
        third['state_dict'][f'{CONNECTOR}weight'], parts['state_dict'][f'{CONNECTOR}weight']
    )


def test_older_checkpoint_of_mmrazor_can_be_loaded_by_a_run(tmp_path):
    torch.manual_seed(7)
    theirs = build(
        dict(
            type='mmrazor.SingleTeacherDistill',
            architecture=pspnet(),
            teacher=pspnet(8, 16),
            distiller=feature_distiller(),
        )
    )
    path = tmp_path / 'theirs.pth'
    torch.save(dict(state_dict=theirs.state_dict(), meta={}), path)
    ours = distill(seed=1)
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    run(ours, tmp_path, iters=1, load_from=str(path), optim_wrapper=optimizer)
    weights = dict(theirs.student.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in ours.student.named_parameters())
    assert torch.equal(
        ours.state_dict()[f'{CONNECTOR}weight'], theirs.state_dict()[f'{CONNECTOR}weight']
    )


# Inheriting the teacher's weights

INHERITED = ['decode_head', 'backbone.layer2']


def save_teacher(folder, config=None, without=()):
    """A checkpoint of a teacher that differs from a new student everywhere; path and weights."""
    torch.manual_seed(11)
    teacher = train_statistics(build(config or pspnet()))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter)
    state = {name: value for name, value in teacher.state_dict().items() if name not in without}
    path = folder / 'teacher.pth'
    torch.save(dict(state_dict=state, meta={}), path)
    return str(path), state


def inherit(folder, paths=INHERITED, **kwargs):
    path, state = save_teacher(folder, **kwargs.pop('saved', {}))
    given = dict(teacher=pspnet(), teacher_ckpt=path, init_student=paths, **kwargs)
    return distill(pair('backbone[3]'), **given), state


class FirstState(Hook):
    """Copies the student's weights before the first iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not hasattr(self, 'state'):
            student = runner.model.student.state_dict()
            self.state = {name: value.clone() for name, value in student.items()}


def is_inherited(name):
    return name.startswith(('decode_head.', 'backbone.layer2.'))


def test_student_begins_a_run_with_the_teachers_weights(tmp_path):
    algorithm, teacher = inherit(tmp_path)
    first = FirstState()
    run(algorithm, tmp_path, iters=1, hooks=[first])
    assert {n for n in teacher if is_inherited(n)} < set(first.state)
    for name, value in first.state.items():
        same = torch.equal(value, teacher[name])
        # what counts batches is 0 in both; all else is different from the start
        assert same == is_inherited(name) or name.endswith('num_batches_tracked'), name
    assert any(
        not torch.equal(value, teacher[name])
        for name, value in algorithm.student.state_dict().items()
        if is_inherited(name)
    ), 'the student is trained'
    assert bitwise_equal(algorithm.teacher.state_dict(), teacher), 'and the teacher is not'


@pytest.mark.parametrize('how', ['resume', 'load_from'])
def test_loaded_checkpoint_wins_over_the_teachers_weights(tmp_path, how):
    algorithm, teacher = inherit(tmp_path)
    run(algorithm, tmp_path, iters=2)
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    again, first = inherit(tmp_path, seed=1)[0], FirstState()
    loading = dict(resume=True) if how == 'resume' else dict(load_from=str(tmp_path / 'iter_2.pth'))
    run(again, tmp_path, iters=3, hooks=[first], **loading)
    assert all(torch.equal(value, saved[name]) for name, value in first.state.items())
    assert any(not torch.equal(first.state[n], teacher[n]) for n in teacher if is_inherited(n))


def test_weights_are_inherited_once(tmp_path):
    algorithm, _ = inherit(tmp_path)
    algorithm.init_weights()
    train_a_little(algorithm)
    before = {name: v.clone() for name, v in algorithm.student.state_dict().items()}
    algorithm.init_weights()
    assert bitwise_equal(algorithm.student.state_dict(), before)


def test_log_tells_how_much_is_inherited(tmp_path, caplog):
    algorithm, teacher = inherit(tmp_path)
    logger = MMLogger.get_instance(f'inherit{id(algorithm)}', log_level='INFO')
    logger.addHandler(caplog.handler)
    algorithm.init_weights()
    count = sum(map(is_inherited, teacher))
    lines = [r.getMessage() for r in caplog.records if 'init_student' in r.getMessage()]
    (line,) = lines
    assert f'begins with {count} of its {len(teacher)} parameters' in line


def test_nothing_is_inherited_unless_told(tmp_path):
    for paths in (None, []):
        algorithm, teacher = inherit(tmp_path, paths)
        algorithm.init_weights()
        weights = [n for n, p in algorithm.student.named_parameters() if p.dim() > 1]
        state = algorithm.student.state_dict()
        assert not any(torch.equal(state[name], teacher[name]) for name in weights)


def test_inherited_weights_must_be_in_the_checkpoint(tmp_path):
    # the teacher stops after its backbone, so that nothing else needs these
    lacking = 'decode_head.conv_seg.weight'
    inherit(tmp_path, ['backbone'], saved=dict(without=[lacking]))
    with pytest.raises(ValueError, match=f'1 are missing .{lacking}'):
        inherit(tmp_path, saved=dict(without=[lacking]))
    counts = [n for n in build(pspnet()).state_dict() if n.endswith('num_batches_tracked')]
    inherit(tmp_path, saved=dict(without=counts))


@pytest.mark.parametrize(
    ('teacher', 'messages'),
    [
        (
            pspnet(classes=7),
            [
                '2 of them differ',
                r'decode_head.conv_seg.weight: student \(5, 8, 1, 1\), teacher \(7, 8, 1, 1\)',
                r'decode_head.conv_seg.bias: student \(5,\), teacher \(7,\)',
            ],
        ),
        (pspnet(4, 16), [r'bottleneck.conv.weight: student \(8, 48, 3, 3\), teacher \(16, ']),
        (upernet_swin(), [r'fpn_bottleneck.bn.running_var: student missing, teacher \(8,\)']),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, teacher, messages):
    path, _ = save_teacher(tmp_path, teacher)
    with pytest.raises(ValueError) as error:
        distill(
            pair('backbone[0]'), teacher=teacher, teacher_ckpt=path, init_student=['decode_head']
        )
    for message in [r"init_student=\['decode_head'\]", *messages, 'Leave out the modules']:
        assert re.search(message, str(error.value)), message


@pytest.mark.parametrize('path', ['decode', 'decode_head.', 'neck', '', 'backbone.layer'])
def test_paths_are_those_of_modules(tmp_path, path):
    """'decode' is no part of 'decode_head'."""
    with pytest.raises(
        ValueError, match=f'student EncoderDecoder has no parameters below {path!r}'
    ):
        inherit(tmp_path, [path])


def test_path_that_only_the_student_has(tmp_path):
    teacher = pspnet()
    teacher.pop('auxiliary_head')
    path, _ = save_teacher(tmp_path, teacher)
    message = (
        "teacher EncoderDecoder has no parameters below 'auxiliary_head'; it has .*decode_head"
    )
    with pytest.raises(ValueError, match=message):
        distill(teacher=teacher, teacher_ckpt=path, init_student=['auxiliary_head'])


@pytest.mark.parametrize('paths', ['decode_head', True, [3], dict(a=1)])
def test_init_student_is_a_list_of_paths(tmp_path, paths):
    with pytest.raises(TypeError, match='init_student must be a list of paths.*got'):
        inherit(tmp_path, paths)


def test_random_teacher_has_nothing_to_inherit():
    with pytest.raises(ValueError, match=r"init_student=\['decode_head'\].*teacher_ckpt=None"):
        distill(teacher=pspnet(), init_student=['decode_head'])


def test_detector_inherits_neck_and_head(mmdet, tmp_path):
    """RetinaNet, as FGD and MGD train it; the teacher itself runs no further than the neck."""
    path, teacher = save_teacher(tmp_path, retinanet())
    algorithm = distill(
        pair('neck[0]'),
        student=retinanet(),
        teacher=retinanet(),
        teacher_ckpt=path,
        init_student=['neck', 'bbox_head'],
    )
    algorithm.init_weights()
    for name, value in algorithm.student.named_parameters():
        same = torch.equal(value, teacher[name])
        assert same == name.startswith(('neck.', 'bbox_head.')), name


# Arguments


@pytest.mark.parametrize('options', [dict(teacher_trainable=True), dict(teacher_norm_eval=False)])
def test_teacher_cannot_be_trained(options):
    with pytest.raises(ValueError, match='FrozenTeacherDistill freezes its teacher'):
        distill(**options)


def test_student_losses_can_be_left_out():
    losses = distill(calculate_student_loss=False)(images(), samples(), mode='loss')
    assert set(losses) == {CAD_BOTTLENECK}


def test_student_can_be_frozen():
    algorithm = distill(student_trainable=False)
    total(algorithm(images(), samples(), mode='loss')).backward()
    assert all(p.grad is None for p in algorithm.student.parameters())
    assert all(p.grad is not None for p in algorithm.distiller.connectors.parameters())


def test_losses_are_those_of_the_student_alone_and_the_distillation():
    algorithm = distill()
    twin = copy.deepcopy(algorithm.student)
    torch.manual_seed(0)
    losses = algorithm(images(), samples(), mode='loss')
    torch.manual_seed(0)
    expected = twin(images(), samples(), mode='loss')
    assert set(losses) == {CAD_BOTTLENECK, *(f'student.{name}' for name in expected)}
    for name, value in expected.items():
        assert torch.equal(losses[f'student.{name}'], value)


def test_config_is_not_changed_by_the_build():
    config = dict(
        type='FrozenTeacherDistill',
        architecture=pspnet(),
        teacher=pspnet(8, 16),
        distiller=feature_distiller(),
        allow_random_teacher=True,
    )
    before = copy.deepcopy(config)
    MODELS.build({'_scope_': 'mmseg', **config})
    assert config == before


def test_models_can_be_given_built():
    student, teacher = build(pspnet()), build(pspnet(8, 16))
    algorithm = distill(student=student, teacher=teacher)
    assert isinstance(algorithm, FrozenTeacherDistill)
    assert algorithm.student is not None
    assert isinstance(algorithm.teacher, BaseModel)


def test_autocast_step():
    algorithm = distill().train()
    with Watch(algorithm.teacher, BOTTLENECK) as watch, torch.autocast('cpu', torch.bfloat16):
        losses = algorithm(images(), samples(), mode='loss')
        assert losses[CAD_BOTTLENECK].dtype == torch.float32
    total(losses).backward()
    assert watch[BOTTLENECK].dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in algorithm.student.backbone.parameters())


@pytest.mark.parametrize('stopped', [False, True])
def test_empty_batch(stopped):
    algorithm = distill()
    algorithm.distillation_stopped = stopped
    with pytest.raises(ValueError, match=r'batch is empty.*\(0, 3, 32, 32\).*train_dataloader'):
        algorithm(images(0), [], mode='loss')


def test_model_from_a_config_file(tmp_path):
    path = tmp_path / 'config.py'
    config = Config(dict(model=pspnet(8, 16), default_scope='mmseg'))
    config.dump(str(path))
    model = build_model(dict(cfg_path=str(path)))
    assert list(model.state_dict()) == list(build(pspnet(8, 16)).state_dict())
    assert torch.equal(model.data_preprocessor.mean.flatten(), torch.tensor([1.0, 2.0, 3.0]))
    algorithm = distill(teacher=dict(cfg_path=str(path)))
    assert algorithm(images(), samples(), mode='loss')[CAD_BOTTLENECK].isfinite()


def test_config_file_with_the_preprocessor_beside_the_model(tmp_path):
    path = tmp_path / 'config.py'
    model = pspnet(8, 16)
    model.pop('data_preprocessor')
    content = dict(
        model=model,
        default_scope='mmseg',
        data_preprocessor=preprocessor(mean=[9.0, 8.0, 7.0]),
    )
    Config(content).dump(str(path))
    built = build_model(dict(cfg_path=str(path)))
    assert torch.equal(built.data_preprocessor.mean.flatten(), torch.tensor([9.0, 8.0, 7.0]))


def test_model_from_a_config_of_mmseg():
    name = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    model = build_model(dict(cfg_path=name, pretrained=False))
    assert model.decode_head.bottleneck.conv.out_channels == 128


@pytest.mark.parametrize(
    ('config', 'error', 'message'),
    [
        (dict(cfg_path='/nowhere/x.py'), ValueError, '/nowhere/x.py'),
        (dict(cfg_path='x.py', backbone=3), ValueError, 'backbone'),
        ('pspnet', TypeError, 'config dict or a BaseModel'),
        (3, TypeError, 'config dict or a BaseModel'),
    ],
)
def test_what_is_no_model(config, error, message):
    with pytest.raises(error, match=message):
        build_model(config)
