"""make_distill_config.py and inspect_features.py, called in this process."""

import importlib.util
import json
import sys
import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_project import ROOT, STUDENT, TEACHER, TOOLS
from zoo import without

from rawkd_mm.training import UsageError, load_config

sys.path.insert(0, str(TOOLS))
import inspect_features  # noqa: E402
import make_distill_config  # noqa: E402

PSPNET = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
FASTSCNN = 'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py'
BASE = "_base_ = './student.py'\n"


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs of a student and a teacher, and the teacher's weights."""
    folder = tmp_path_factory.mktemp('pair')
    (folder / 'student.py').write_text(STUDENT)
    (folder / 'teacher.py').write_text(TEACHER)
    cfg = load_config(str(folder / 'teacher.py'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state), folder / 'teacher.pth')
    return folder


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Calls a tool in the folder; gives what it printed, its error included."""

    def call(tool, *args, fails=False):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', [tool.__file__, *map(str, args)])
        with warnings.catch_warnings():
            try:
                tool.main()
                error = None
            except SystemExit as stop:
                error = stop.code
        printed = capsys.readouterr()
        assert (error not in (None, 0)) == fails, f'{error}\n{printed.out}\n{printed.err}'
        return ' '.join(f'{printed.out}\n{printed.err}\n{error if fails else ""}'.split())

    return call


def make(*args, teacher='teacher.py', student='student.py', method='cad', out='out.py'):
    given = ['--teacher', teacher, '--teacher-ckpt', 'teacher.pth', '--student', student]
    return [make_distill_config, *given, '--method', method, '-o', out, *args]


def test_the_student_keeps_data_and_schedule(call, folder):
    log = call(*make('--force'))
    assert 'out.py is written' in log and 'One iteration on 2 made-up images of 32x32 ran' in log
    cfg = Config.fromfile(folder / 'out.py')
    before = Config.fromfile(folder / 'student.py')
    assert str(folder) not in (folder / 'out.py').read_text()
    assert cfg.model.teacher_speed == 'auto'
    before.train_dataloader.dataset.data_root = 'data'  # relative to where the tool was called
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert cfg[key] == before[key], key
    assert cfg.model.architecture == before.model
    assert cfg.model.teacher.backbone.base_channels == 8
    assert cfg.model.teacher_ckpt == 'teacher.pth'
    assert cfg.model.distiller.loss == dict(type='CADLoss', loss_weight=3.0)
    (pair,) = cfg.model.distiller.pairs
    assert pair == dict(student='decode_head.bottleneck', teacher='decode_head.bottleneck')
    assert cfg.custom_hooks == [dict(type='FeatureGeometryHook', interval=1)]


def test_the_table_has_shapes_and_costs(call, folder):
    log = call(*make('--force'))
    for text in ('8x8x8', '16x8x8', '1x1 convolution 8 -> 16'):
        assert text in log
    for name in ('student', 'teacher'):
        cfg = load_config(str(folder / f'{name}.py'))
        with DefaultScope.overwrite_default_scope('mmseg'):
            number = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
        assert f'{name}, EncoderDecoder │ {number / 1e3:.2f} k' in log
    # of the connector: a weight for each pair of channels, at each of 8x8 positions, and biases
    assert f'connectors │ {8 * 16 + 16} │ {8 * 16 * 64 / 1e3:.2f} k' in log
    assert 'WARNING' not in log


def test_published_configs_are_inherited(call, folder):
    log = call(*make('--no-check', '--force', teacher=PSPNET, student=FASTSCNN, method='mgd'))
    text = (folder / 'out.py').read_text()
    assert text.count('\n') < 60
    assert f"_base_ = '{FASTSCNN}'" in text and f"cfg_path='{PSPNET}'" in text
    cfg = Config.fromfile(folder / 'out.py')
    student = load_config(FASTSCNN)
    # MMEngine notes whose names they are
    assert without(cfg.model.architecture.to_dict(), '_scope_') == student.model.to_dict()
    assert without(cfg.train_dataloader.to_dict(), '_scope_') == student.train_dataloader.to_dict()
    assert without(cfg.optim_wrapper.to_dict(), '_scope_') == dict(
        student.optim_wrapper.to_dict(), clip_grad=dict(max_norm=35, norm_type=2)
    )
    assert 'One iteration' not in log


@pytest.mark.parametrize(
    ('changes', 'warning'),
    [
        ('model = dict(decode_head=dict(num_classes=4))', 'student has 11, the teacher 4'),
        (
            'train_dataloader = dict(dataset=dict(metainfo=dict(classes=tuple("abcdefghijk"))))',
            "the student has 'background' where the teacher has 'a'",
        ),
        ('model = dict(data_preprocessor=dict(mean=[0, 0, 0]))', 'Other normalisation'),
        ('model = dict(backbone=dict(strides=(1, 2, 2, 1)))', 'a factor of 4.0'),
        ('model = dict(backbone=dict(base_channels=2), decode_head=dict(in_channels=16))',
         'teacher is not larger than the student'),
        ('model = dict(data_preprocessor=dict(size=(64, 32)))', 'student trains on images padded to '
         "32x32, the teacher's config on images padded to 64x32"),
    ],
    ids=['number', 'names', 'normalisation', 'stride', 'small', 'crop'],
)  # fmt: skip
def test_warnings(call, folder, changes, warning):
    (folder / 'other.py').write_text(BASE + changes)
    log = call(*make('--no-check', '--force', teacher='other.py'))
    assert warning in log.partition('WARNING: ')[2]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (dict(student='nowhere.py'), "--student 'nowhere.py' is not a file"),
        (dict(teacher='mmseg::pspnet/x.py'), 'mmseg has no config'),
        (dict(teacher='nopackage::a/b.py'), "no package 'nopackage'"),
        (dict(method='fgd'), '--method fgd is for detectors'),
        (dict(out='out.yaml'), "-o 'out.yaml' must end in .py"),
        (dict(out='student.py'), 'overwrite it with --force'),
        (dict(features=['a', 'b']), 'expected either auto, or memory, or pairs'),
        (
            dict(features=['decode_head.nope=decode_head.bottleneck']),
            "no module 'decode_head.nope'",
        ),
        (dict(features=['decode_head.bottleneck=decode_head.psp_modules']), 'say which one with'),
    ],
)
def test_what_cannot_be_done_is_said(call, folder, args, message):
    features = ['--features', *args.pop('features')] if 'features' in args else []
    out = args.get('out', 'refused.py')
    before = (folder / out).read_text() if (folder / out).is_file() else None
    assert message in call(*make(*features, **{**args, 'out': out}), fails=True)
    assert ((folder / out).read_text() if (folder / out).is_file() else None) == before


@pytest.mark.parametrize('method', ['cwd', 'kl'])
def test_methods_of_scores_want_the_same_classes(call, folder, method):
    (folder / 'other.py').write_text(BASE + 'model = dict(decode_head=dict(num_classes=4))')
    log = call(*make(teacher='other.py', method=method, out='refused.py'), fails=True)
    assert f'--method {method} compares' in log
    assert 'the student has 11, the teacher 4' in log


def test_weights_of_another_model_are_refused(call, folder):
    (folder / 'other.py').write_text(BASE)
    log = call(*make(teacher='other.py', out='refused.py'), fails=True)
    assert "teacher_ckpt='teacher.pth' does not fit" in log
    assert not (folder / 'refused.py').exists()


def test_a_student_that_would_not_learn_is_found_by_the_trial(call, folder):
    """A frozen stage: only a real iteration shows it."""
    (folder / 'frozen.py').write_text(BASE + 'model = dict(backbone=dict(frozen_stages=1))')
    pair = ('--features', 'backbone[0]=backbone[0]')
    log = call(*make(*pair, student='frozen.py', out='refused.py'), fails=True)
    assert 'the student feature has no gradient' in log
    assert not (folder / 'refused.py').exists()
    assert 'is written' in call(*make(*pair, '--force', '--no-check', student='frozen.py'))


@pytest.mark.parametrize('method', [m for m in make_distill_config.METHODS if m != 'kl'])
@pytest.mark.usefixtures('mmdet')
def test_methods_for_detectors(call, folder, method):
    """Every method takes its iteration on all levels of the neck."""
    names = [
        ROOT / f'configs/quickstart/retinanet_r18-w{w}_1xb16-3k_digit-scenes-64x64.py'
        for w in (8, 32)
    ]
    cfg = load_config(str(names[1]))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(cfg.model).state_dict(), folder / 'teacher_det.pth')
    log = call(
        *make('--force', student=names[0], teacher=names[1], method=method),
        '--teacher-ckpt', 'teacher_det.pth',
    )  # fmt: skip
    assert 'One iteration' in log
    cfg = Config.fromfile(folder / 'out.py')
    assert [(p.student, p.teacher) for p in cfg.model.distiller.pairs] == [
        (f'neck[{i}]', f'neck[{i}]') for i in range(3)
    ]


def test_features_are_listed_as_they_run(call, folder):
    call(
        inspect_features, 'student.py', '--teacher', 'teacher.py', '--depth', 0, '--json', 'x.json'
    )
    listed = json.loads((folder / 'x.json').read_text())
    assert listed['image'] == [32, 32]
    cfg = load_config(str(folder / 'student.py'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(json.loads(json.dumps(cfg.model).replace('SyncBN', 'BN'))).eval()
    expected = []
    for name, module in model.named_modules():
        if name:

            def hook(module, args, output, name=name):
                tuples = enumerate(output) if isinstance(output, (list, tuple)) else [('', output)]
                for i, tensor in tuples:
                    if tensor.dim() == 4:
                        index = '' if i == '' else f'[{i}]'
                        expected.append((f'{name}{index}', list(tensor.shape[1:])))

            module.register_forward_hook(hook)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32), mode='tensor')
    once = {n for n, _ in expected if [m for m, _ in expected].count(n) == 1}
    found = {f['feature']: f for f in listed['student']['features']}
    assert [(n, s) for n, s in expected if n in once] == [
        (f['feature'], f['shape']) for f in found.values() if f['feature'] in once
    ]
    for name, feature in found.items():
        assert feature['stride'] == 32 / feature['shape'][1]
        assert (feature['runs'] == 1) == (name in once)
        assert 0 <= feature['time_share'] <= 1
    assert found['backbone[3]']['time_share'] >= found['backbone.layer4']['time_share'] > 0
    assert [n for n, f in found.items() if f['auto']] == ['decode_head.bottleneck']
    assert found['decode_head.bottleneck']['matches'] == 'decode_head.bottleneck'
    theirs = {f['feature']: f for f in listed['teacher']['features']}
    for name, feature in found.items():
        if feature['matches']:
            assert theirs[feature['matches']]['matches'] == name
            assert theirs[feature['matches']]['stride'] == feature['stride']


def test_modules_that_run_twice_are_marked(call, folder):
    log = call(inspect_features, 'student.py', '--teacher', 'teacher.py', '--depth', 0)
    assert 'choose one, such as' in log and '[run=0]' in log  # the ReLU of a residual block


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.py'], "'nowhere.py' is not a file"),
        (['student.py', '--depth', '-1'], '--depth must be 0 or more, got -1'),
        (['student.py', '--size', '0', '4'], '--size must be positive, got 0 4'),
        (['mmseg::pspnet/nope.py'], 'mmseg has no config'),
    ],
)
def test_what_cannot_be_listed_is_said(call, args, message):
    assert message in call(inspect_features, *args, fails=True)


def test_a_published_config_that_cannot_be_read_says_why():
    """ConvNeXt's asks for MMPretrain, which is not installed."""
    name = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
    if importlib.util.find_spec('mmpretrain') is not None:
        pytest.skip('MMPretrain is installed')
    with pytest.raises(UsageError, match=r'tiny_upernet\S+ cannot be read: .*mmpretrain'):
        load_config(name)


def test_a_run_of_a_module_is_named_in_a_pair(call, folder):
    name = 'decode_head.conv_seg:input[run=0]'
    log = call(*make('--force', '--features', f'{name}={name}'))
    assert 'One iteration' in log
    assert log.count('[run=0]') == 2
    (pair,) = Config.fromfile(folder / 'out.py').model.distiller.pairs
    assert pair == dict(student=name, teacher=name)


SEGMENTER = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        _delete_=True, type='VisionTransformer', img_size=32, patch_size=8, embed_dims=8, num_layers=2,
        num_heads=2, out_indices=(0, 1), final_norm=True, with_cls_token=True,
    ),
    decode_head=dict(
        _delete_=True, type='SegmenterMaskTransformerHead', in_channels=8, in_index=1, channels=8,
        embed_dims=8, num_layers=1, num_heads=2, num_classes=11, norm_cfg=dict(type='LN'),
    ),
    auxiliary_head=None,
)
"""


@pytest.fixture
def segmenter(folder):
    file = folder / 'segmenter.py'
    file.write_text(SEGMENTER.format(base='student.py'))
    yield file.name
    file.unlink()


def test_tokens_of_a_student_learn_from_a_map(call, folder, segmenter):
    log = call(*make('--force', student=segmenter))
    assert 'One iteration' in log
    (pair,) = Config.fromfile(folder / 'out.py').model.distiller.pairs
    assert pair == dict(student='decode_head.patch_proj:tokens', teacher='decode_head.bottleneck')
    assert '8x4x4' in log  # patches of 8 pixels in an image of 32x32


def test_tokens_are_listed_with_their_grid(call, folder, segmenter):
    call(inspect_features, segmenter, '--json', 'x.json', '--depth', 0)
    listed = json.loads((folder / 'x.json').read_text())['student']['features']
    found = {entry['feature']: entry for entry in listed}
    for name in ('backbone.layers.0:tokens', 'decode_head.dec_proj:tokens'):
        assert found[name]['shape'] == [8, 4, 4] and found[name]['stride'] == 8
    # patches, and behind them the classes: which are which is not known
    assert 'decode_head.layers.0:tokens' not in found or (
        found['decode_head.layers.0:tokens']['shape'] == [8, 4, 4]
    )
    assert [name for name, entry in found.items() if entry['auto']] == [
        'decode_head.patch_proj:tokens'
    ]
