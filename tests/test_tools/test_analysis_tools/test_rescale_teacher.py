"""A teacher whose feature has another norm computes the same; what does not allow it is refused."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import build, faster_rcnn, pspnet, retinanet, upernet_swin
from mmengine.config import Config
from mmengine.model import BaseModel
from tool_project import ROOT
from torch import nn

from rawkd_mm.analysis.feature_scale import find_feature_scale
from rawkd_mm.analysis.rescale_teacher import rescale_state, rescale_teacher
from rawkd_mm.features import FeatureSource
from rawkd_mm.functional import angular_distance, decompose
from rawkd_mm.training import UsageError, load_config, replace_sync_batchnorm

TOOL = ROOT / 'tools/analysis_tools/rescale_teacher.py'
NAME = 'pspnet_r18-w12_1xb16-4k_digit-scenes-48x48'
TEACHER = ROOT / f'configs/quickstart/{NAME}.py'
WEIGHTS = ROOT / f'configs/quickstart/weights/{NAME}.pth'
BOTTLENECK = 'decode_head.bottleneck'
ALPHAS = (0.1, 0.32, 3.2, 10.0)

pytestmark = pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')


def randomise(model):
    """Give every norm weights, biases and statistics that are no 1 and no 0."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(getattr(module, 'running_var', None), torch.Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.normal_(module.weight, 1, 0.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def made(config):
    """A config and random weights for it."""
    state = randomise(build(config)).state_dict()
    return Config(dict(model=config, default_scope=config.get('_scope_', 'mmseg'))), state


def outputs(config, state, feature):
    """Scores and feature of a model in float64, on random images, computed without the package."""
    model = build(config)
    replace_sync_batchnorm(model)
    model.double().eval().load_state_dict(state)
    found = []
    module = model.get_submodule(feature)
    # a copy: the dropout behind it works in place in some heads
    module.register_forward_hook(lambda m, args, out: found.append(out.clone()))
    torch.manual_seed(1)
    with torch.no_grad():
        scores = model(torch.randn(2, 3, 64, 64).double(), mode='tensor')
    return scores, found[0]


@pytest.mark.parametrize('alpha', ALPHAS)
@pytest.mark.parametrize(
    ('config', 'feature'),
    [(pspnet(), BOTTLENECK), (upernet_swin(), 'decode_head.fpn_bottleneck')],
    ids=['pspnet', 'upernet'],
)
def test_same_function_and_a_scaled_feature(config, feature, alpha):
    cfg, state = made(config)
    result = rescale_teacher(cfg, state, feature, alpha, size=(64, 64))
    double = {n: v.double() if v.is_floating_point() else v for n, v in state.items()}
    exact = rescale_state(double, result.scale, alpha)
    for new, rtol in ((exact, 1e-11), (result.state, 1e-5)):
        (scores, before), (same, after) = (outputs(config, s, feature) for s in (double, new))
        torch.testing.assert_close(same, scores, rtol=rtol, atol=rtol * scores.abs().max().item())
        atol = rtol * alpha * before.abs().max().item()
        torch.testing.assert_close(after, alpha * before, rtol=rtol, atol=atol)
    changed = {n for n in state if not torch.equal(state[n], result.state[n])}
    path = f'{feature}.bn'
    assert changed == {f'{path}.weight', f'{path}.bias', 'decode_head.conv_seg.weight'}
    assert result.differences['random images'] < 1e-5
    assert result.feature_ratio == pytest.approx(alpha, rel=1e-5)


@pytest.mark.parametrize('alpha', ALPHAS)
def test_naive_distillation_sees_it_and_angles_do_not(alpha):
    cfg, state = made(pspnet())
    new = rescale_teacher(cfg, state, BOTTLENECK, alpha, size=(64, 64)).state
    before, after = (outputs(cfg.model, s, BOTTLENECK)[1] for s in (state, new))
    student = torch.randn(before.shape, generator=torch.Generator().manual_seed(2)).double()
    old, now = decompose(student, before), decompose(student, after)
    torch.testing.assert_close(now.coupling, alpha * old.coupling, rtol=1e-6, atol=0)
    torch.testing.assert_close(now.angular_term, alpha * old.angular_term, rtol=1e-6, atol=0)
    torch.testing.assert_close(now.cosine, old.cosine, rtol=1e-5, atol=1e-7)
    for granularity in ('layer', 'channel', 'pixel'):
        values = [angular_distance(student, x, granularity).item() for x in (before, after)]
        assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_halves_are_stored_in_float32():
    cfg, state = made(pspnet())
    halves = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    result = rescale_teacher(cfg, halves, BOTTLENECK, 0.1, size=(64, 64))
    changed = {*result.scale.norm, *result.scale.readers}
    for name, value in result.state.items():
        assert value.dtype == (torch.float32 if name in changed else halves[name].dtype), name


def test_rescaling_back_gives_the_weights_again():
    cfg, state = made(pspnet())
    there = rescale_teacher(cfg, state, BOTTLENECK, 0.25, size=(64, 64)).state
    back = rescale_teacher(cfg, there, BOTTLENECK, 4.0, size=(64, 64)).state
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_name_of_an_input_means_the_same():
    cfg, state = made(pspnet())
    names = (BOTTLENECK, 'decode_head.dropout:input', 'decode_head.conv_seg:input')
    results = [rescale_teacher(cfg, state, name, 3.0, size=(64, 64)) for name in names]
    assert len({str(result.scale) for result in results}) == 1


def test_an_auxiliary_head_is_a_reader():
    """It runs in a training alone; its first convolution reads what the main head's reads."""
    config = pspnet()
    head = dict(in_index=3, in_channels=32, num_convs=1, concat_input=False)
    config['auxiliary_head'].update(head)
    config['decode_head'] = dict(
        config['auxiliary_head'], loss_decode=dict(type='CrossEntropyLoss')
    )
    config['neck'] = dict(
        type='FPN', in_channels=[4, 8, 16, 32], out_channels=32, num_outs=4, _scope_='mmseg',
        norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'),
    )  # fmt: skip
    cfg, state = made(config)
    result = rescale_teacher(cfg, state, 'neck.fpn_convs.3', 0.5, size=(64, 64))
    names = [f'{head}.convs.0.conv.weight' for head in ('auxiliary_head', 'decode_head')]
    assert sorted(result.scale.readers) == names


def test_a_head_that_draws_random_numbers():
    """LightHamHead of SegNeXt begins its factorisation with random matrices, also in eval mode."""
    config = pspnet()
    config['decode_head'] = dict(
        config['decode_head'], type='LightHamHead', in_channels=[16, 32], in_index=[2, 3],
        ham_channels=8, ham_kwargs=dict(MD_R=4), norm_cfg=dict(type='GN', num_groups=2),
    )  # fmt: skip
    del config['decode_head']['pool_scales'], config['auxiliary_head']
    cfg, state = made(config)
    before = torch.get_rng_state()
    result = rescale_teacher(cfg, state, 'decode_head.align', 0.5, size=(64, 64))
    assert torch.equal(torch.get_rng_state(), before)
    assert result.scale.norm == ['decode_head.align.gn.weight', 'decode_head.align.gn.bias']


# What is refused


def refuse(config, feature, message, alpha=0.5):
    cfg, state = made(config)
    with pytest.raises(UsageError, match=message):
        rescale_teacher(cfg, state, feature, alpha, size=(64, 64))


@pytest.mark.parametrize('alpha', [0, 0.0, -1.0, float('nan'), float('inf')])
def test_bad_alpha(alpha):
    refuse(pspnet(), BOTTLENECK, f'--alpha must be positive and finite, got {alpha}', alpha)


@pytest.mark.parametrize('alpha', [1e-42, 1e42])
def test_alpha_that_leaves_no_digits(alpha):
    refuse(pspnet(), BOTTLENECK, 'does not fit torch.float32|the check failed', alpha)


@pytest.mark.parametrize(
    ('feature', 'message'),
    [
        ('decode_head.nope', "no module 'decode_head.nope'; the closest"),
        ('decode_head bottleneck', "got 'decode_head bottleneck'"),
        ('backbone', 'outputs a tuple of 4; say which one'),
        ('auxiliary_head.conv_seg', 'no norm that sets its scale: conv2d in .*conv_seg'),
        # a sum of two norms
        (
            'backbone[3]',
            'no norm that sets its scale: add_ in .backbone.layer4.1. .* does not let',
        ),
        # resized and concatenated with other maps
        (
            'decode_head.psp_modules[0]',
            'scale cannot change .*cat in .* combines it with maps of other',
        ),
        ('decode_head.conv_seg', 'no norm that sets its scale: conv2d in'),
    ],
)
def test_features_of_a_pspnet_that_do_not_allow_it(feature, message):
    refuse(pspnet(), feature, message)


def test_backbone_of_a_swin_transformer():
    """A LayerNorm gives it, and three modules of the head read it, one through a sum."""
    refuse(upernet_swin(), 'backbone[1]', 'scale cannot change')


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('make', [retinanet, faster_rcnn])
def test_neck_of_a_detector_has_no_norm(make):
    refuse(make(), 'neck[0]', 'no norm that sets its scale: conv2d in .neck.fpn_convs.0.conv')


@pytest.mark.usefixtures('mmdet')
def test_neck_with_norms_is_read_by_a_head_that_all_levels_share():
    config = retinanet()
    config['neck'].update(norm_cfg=dict(type='BN'), act_cfg=None)
    refuse(
        config, 'neck[0]', "'bbox_head.cls_convs.0.conv.weight', which reads it, is used 5 times"
    )


# Small models, each with one thing in the way or one that is not


class ByOtherMeans(nn.Module):
    """As an operator that another package has compiled: no function of PyTorch is seen."""

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            return x * x


class Small(BaseModel):
    """A norm, ReLU and what ``end`` does with it; ``conv`` reads it or something else."""

    def __init__(self, end, activation=torch.relu, norm=None):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.feature = nn.Identity()
        self.conv, self.other, self.line = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        self.square = ByOtherMeans()
        self.end, self.activation = end, activation

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.feature(self.activation(self.norm(self.first(inputs))))
        return self.end(self, x)


def scale_of(end, **kwargs):
    torch.manual_seed(0)
    model = randomise(Small(end, **kwargs)).double().eval()
    inputs = torch.randn(2, 3, 9, 9).double()
    source = FeatureSource('feature')
    scale, _ = find_feature_scale(model, source, lambda: model(inputs, mode='tensor'))
    changed = copy.deepcopy(model)
    changed.load_state_dict(rescale_state(model.state_dict(), scale, 3.0))
    torch.testing.assert_close(changed(inputs), model(inputs), rtol=1e-12, atol=1e-12)
    return scale


def masked(model, x):
    return model.conv(x * (torch.arange(x.shape[-1]) > 3))


def written(model, x):
    y = torch.zeros_like(x)
    y[:, :4] = x[:, :4]
    return model.conv(y)


ALLOWED = {
    'one': lambda m, x: m.conv(x),
    'two': lambda m, x: m.conv(x) + m.other(x),
    'resized': lambda m, x: m.conv(F.interpolate(x, size=(5, 7), mode='bilinear')),
    'pooled': lambda m, x: m.conv(F.max_pool2d(x, 2) - F.adaptive_avg_pool2d(x, 1)),
    'in place': lambda m, x: m.conv(F.dropout((x + x).mul_(2), 0.5, False)),
    'leaky': lambda m, x: m.conv(F.leaky_relu(x - 2 * x)),
    'masked': masked,
    'sum': lambda m, x: m.conv(x + F.avg_pool2d(x, 3, 1, 1)),
    'cat': lambda m, x: m.conv(torch.cat([x[:, 4:], x[:, :4]], dim=1)),
    'linear': lambda m, x: m.line(x.permute(0, 2, 3, 1)),
    'scale-free': lambda m, x: m.conv(x) + F.normalize(x, dim=1).sum(),
}


@pytest.mark.parametrize('name', ALLOWED)
def test_what_is_allowed(name):
    scale = scale_of(ALLOWED[name])
    assert scale.norm == ['norm.weight', 'norm.bias']
    expected = dict(two=['conv.weight', 'other.weight'], linear=['line.weight'])
    assert scale.readers == expected.get(name, ['conv.weight'])


@pytest.mark.parametrize(
    'norm',
    [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(7), nn.BatchNorm2d(8)],
    ids=lambda norm: type(norm).__name__,
)
def test_norms(norm):
    with torch.no_grad():
        norm.bias.normal_()
    scale = scale_of(ALLOWED['one'], norm=norm)
    assert scale == (['norm.weight', 'norm.bias'], ['conv.weight'])


@pytest.mark.parametrize('activation', [nn.Identity(), nn.PReLU(8), nn.LeakyReLU()])
def test_activations(activation):
    assert scale_of(ALLOWED['one'], activation=activation).readers == ['conv.weight']


@pytest.mark.parametrize('activation', [nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU()])
def test_activations_that_do_not_scale(activation):
    with pytest.raises(UsageError, match='does not let a factor through'):
        scale_of(ALLOWED['one'], activation=activation)


REFUSED = {
    'softmax': (lambda m, x: m.conv(x) + x.softmax(1), "softmax in Small does not let"),
    'product': (lambda m, x: m.conv(x) + x * x, 'mul in Small does not let'),
    'sum with another': (lambda m, x: m.conv(x + 1), 'add in Small does not let'),
    'another norm': (lambda m, x: m.norm(x), 'batch_norm in .norm.*does not let'),
    'number': (lambda m, x: m.conv(x) * x.mean().item(), 'item in Small does not let'),
    'nobody': (lambda m, x: x, 'no convolution or linear layer reads it'),
    'computed weight': (lambda m, x: F.conv2d(x, 2 * m.conv.weight, m.conv.bias),
                        'conv2d in Small does not let'),
    'shared': (lambda m, x: m.conv(x) + m.conv(x + x), "'conv.weight'.* is used 2 times"),
    'shared with another map': (lambda m, x: m.conv(x) + m.conv(torch.ones(1, 8, 1, 1).double()),
                                "'conv.weight'.* is used 2 times"),
    'tied': (lambda m, x: m.conv(x) + m.conv.weight.sum(), "'conv.weight'.* is used 2 times"),
    'norm twice': (lambda m, x: m.conv(x) + m.norm(m.other(m.conv(x))),
                   "'norm.weight' is used 2 times"),
    'written': (written, 'writes it into another tensor'),
    'other means': (lambda m, x: m.conv(x) + m.square(x), 'square.* reads it by other means'),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
    end, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        scale_of(end)


@pytest.mark.parametrize(
    ('norm', 'giver'),
    [
        (nn.BatchNorm2d(8, affine=False), "batch_norm in 'norm'"),
        (nn.Identity(), "conv2d in 'first'"),
    ],
)
def test_norms_without_weights(norm, giver):
    with pytest.raises(UsageError, match=f'no norm that sets its scale: {giver} .* gives it'):
        scale_of(ALLOWED['one'], norm=norm)


# The command line


def run(*args, cwd, fails=False):
    command = [sys.executable, str(TOOL), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_end_to_end(tmp_path):
    """The quickstart's teacher: its scores on real images, and what the tools read again."""
    from rawkd_mm.analysis.evaluation import evaluate

    root = tmp_path / 'data'
    made_data = [
        sys.executable, ROOT / 'tools/dataset_converters/digit_scenes.py', '--root', root,
        '--size', '48', '--train', '4', '--val', '12', '--workers', '1',
    ]  # fmt: skip
    subprocess.run(list(map(str, made_data)), check=True, capture_output=True, cwd=tmp_path)
    option = f'val_dataloader.dataset.data_root={root}'
    out = tmp_path / 'small.pth'
    args = (TEACHER, WEIGHTS, '--feature', BOTTLENECK, '--alpha', 0.1, '-o', out)
    text = run(*args, '--cfg-options', option, cwd=tmp_path)
    assert 'times 0.1: decode_head.bottleneck.bn.weight, decode_head.bottleneck.bn.bias' in text
    assert 'divided by 0.1: decode_head.conv_seg.weight' in text
    assert 'predictions on 4 validation images: the same to' in text
    assert f'{out} is written' in text

    cfg = load_config(str(TEACHER))
    cfg.merge_from_dict({'val_dataloader.dataset.data_root': str(root)})
    metrics = [evaluate(cfg, str(c), 'cpu', lambda *_: None).metrics for c in (WEIGHTS, out)]
    assert metrics[0] == metrics[1] and metrics[0]['mIoU'] > 30
    checkpoint = torch.load(out, weights_only=True)
    assert checkpoint['meta']['rescaled']['alpha'] == 0.1
    given = torch.load(WEIGHTS, weights_only=True)
    assert set(checkpoint['state_dict']) == set(given['state_dict'])
    assert checkpoint['meta']['config'] == given['meta']['config']

    log = run(*args, cwd=tmp_path, fails=True)
    assert 'exists. Choose another name, or overwrite it with --force' in log
    message = run(*args[:3], 'decode_head.conv_seg', *args[4:], '--force', cwd=tmp_path, fails=True)
    assert 'rescale_teacher.py: error: --feature decode_head.conv_seg has no norm' in message
    assert torch.equal(
        torch.load(out, weights_only=True)['state_dict'][f'{BOTTLENECK}.bn.weight'],
        checkpoint['state_dict'][f'{BOTTLENECK}.bn.weight'],
    )


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--alpha', '0'], '--alpha must be positive and finite, got 0.0'),
        (['--alpha', 'nan'], '--alpha must be positive and finite, got nan'),
        (['--alpha', '2', '--images', '-1'], '--images must be at least 0'),
        (['--alpha', '2', '--size', '0', '8'], '--size must be positive, got 0 8'),
        (['--alpha', '2', '-o', 'x.py'], "-o 'x.py' must end in .pth"),
        (['--alpha', '2', '-o', WEIGHTS, '--force'], 'is CKPT itself'),
    ],
)
def test_bad_arguments(call_tool, tmp_path, args, message):
    end = [] if '-o' in args else ['-o', tmp_path / 'out.pth']
    code, _, err = call_tool(
        TEACHER, WEIGHTS, '--feature', BOTTLENECK, *args, *end, tool='rescale_teacher'
    )
    assert code == 2 and message in err


def test_a_distillation_is_no_teacher(call_tool, tmp_path):
    name = 'lad_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48'
    config = ROOT / f'configs/quickstart/{name}.py'
    code, _, err = call_tool(
        config, WEIGHTS, '--feature', BOTTLENECK, '--alpha', 2, '-o', tmp_path / 'out.pth',
        tool='rescale_teacher',
    )  # fmt: skip
    assert code == 1 and "is a distillation. Give the teacher's own config" in err


def test_weights_of_another_model(call_tool, tmp_path):
    student = ROOT / 'configs/quickstart/pspnet_r18-w4_1xb16-4k_digit-scenes-48x48.py'
    code, _, err = call_tool(
        student, WEIGHTS, '--feature', BOTTLENECK, '--alpha', 2, '-o', tmp_path / 'out.pth',
        tool='rescale_teacher',
    )  # fmt: skip
    assert code == 1 and 'does not fit the model' in err
    assert not (tmp_path / 'out.pth').exists()
