"""Tokens as maps, runs of a module and deep indices: the values are those that the model computed."""

import pytest
import torch
from helpers import build, distill, feature_distiller, images, pspnet, samples, upernet_swin
from mmengine.model import BaseModel
from torch import nn

from rawkd_mm.features import FeatureSource, dry_run, find_memory, measure_feature
from rawkd_mm.features.tokens import GridSearch, tokens_to_map


class Net(BaseModel):
    """Patches of 8x8 pixels as a sequence, the ways in which models keep one."""

    def __init__(self, others=0, layout='BNC', last=False, channels=6):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 8, 8)
        self.sequence = nn.Identity()
        self.after = nn.Conv2d(channels, 2, 1)
        self.others, self.layout, self.last = others, layout, last

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.map = self.patches(inputs)
        if self.layout == 'BHWC':
            self.sequence(self.map.permute(0, 2, 3, 1))
            return self.after(self.map)
        tokens = self.map.flatten(2).transpose(1, 2)
        # of each image other values than those of patches
        others = 100 + torch.arange(self.others)[None, :, None].expand(
            len(inputs), self.others, tokens.shape[2]
        )
        tokens = torch.cat([tokens, others] if self.last else [others, tokens], 1)
        self.sequence(tokens.transpose(0, 1) if self.layout == 'NBC' else tokens)
        return self.after(self.map)


def feature_of(model, text, inputs, shape=(3, 32, 32), **kwargs):
    """A feature of some images, recorded as in a training: the dry run is of another size."""
    source = FeatureSource.parse(text)
    capture = dry_run(model, shape, [source], 'student').capture
    with capture.record(model) as recording:
        model(inputs, **kwargs)
    return capture.features(recording, 'student')[source]


@pytest.mark.parametrize('layout', ['BNC', 'NBC', 'BHWC'])
@pytest.mark.parametrize('others', [0, 1, 5])
@pytest.mark.parametrize('size', [(40, 64), (64, 24), (8, 8)])
def test_tokens_are_the_map_they_come_from(layout, others, size):
    model = Net(others if layout != 'BHWC' else 0, layout)
    found = feature_of(model, 'sequence:tokens', torch.randn(2, 3, *size))
    assert torch.equal(found, model.map)


def test_two_images_whose_number_is_that_of_the_tokens():
    """(2, 2, C) looks the same either way: the dry run with one image has told which it is."""
    for layout in ('BNC', 'NBC'):
        model = Net(1, layout)
        found = feature_of(model, 'sequence:tokens', torch.randn(2, 3, 8, 8))
        assert torch.equal(found, model.map)


@pytest.mark.parametrize(('layer', 'index'), [(0, 0), (3, 3)])
def test_a_layer_of_a_vision_transformer_is_the_map_that_mmseg_makes_of_it(layer, index):
    config = pspnet()
    config.pop('auxiliary_head')
    config['backbone'] = dict(
        type='VisionTransformer', img_size=64, patch_size=16, embed_dims=8, num_layers=4,
        num_heads=2, out_indices=(0, 1, 2, 3), final_norm=False, with_cls_token=True,
    )  # fmt: skip
    config['decode_head'].update(in_channels=8)
    model = build(config)
    model.eval()
    inputs = torch.randn(2, 3, 48, 80)
    found = feature_of(model, f'backbone.layers.{layer}:tokens', inputs, mode='tensor')
    torch.testing.assert_close(found, model.backbone(inputs)[index])


def test_blocks_of_swin_behind_a_merging_of_tokens():
    model = build(upernet_swin()).eval()
    inputs = torch.randn(2, 3, 40, 72)  # 5 x 9 positions, which the merging pads
    for stage in (0, 1):
        block = f'backbone.stages.{stage}.blocks.1'
        found = feature_of(model, f'{block}:tokens', inputs, mode='tensor')
        norm = getattr(model.backbone, f'norm{stage}')
        expected = model.backbone(inputs)[stage]
        given = norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(given, expected)


class Levels(BaseModel):
    """A neck of two levels, and their sequence, as an encoder of Deformable DETR has it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.neck = Neck()
        self.encoder = nn.Identity()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.levels = self.neck(self.stem(inputs))
        self.encoder(torch.cat([x.flatten(2).transpose(1, 2) for x in self.levels], 1))
        return self.levels


class Neck(nn.Module):
    def forward(self, x):
        return [x, nn.functional.max_pool2d(x, 2)]


def test_a_sequence_of_several_maps():
    model = Levels()
    inputs = torch.randn(2, 3, 64, 48)
    for level in (0, 1):
        found = feature_of(model, f'encoder:tokens[{level}]', inputs)
        assert torch.equal(found, model.levels[level])
    with pytest.raises(ValueError, match=r"2 maps, of 16 x 16 \+ 8 x 8 .*'encoder:tokens\[0\]'"):
        measure_feature(model, 'encoder:tokens', (3, 64, 64))
    with pytest.raises(ValueError, match=r"say which one, such as 'encoder:tokens\[0\]'"):
        measure_feature(model, 'encoder:tokens[2]', (3, 64, 64))
    assert [f.stride for f in find_memory(model, 'student', (3, 64, 64))] == [4, 8]


def test_a_level_of_one_map_is_left_out():
    with pytest.raises(ValueError, match=r'one map: leave out \[0\]'):
        measure_feature(Net(1), 'sequence:tokens[0]', (3, 32, 32))


@pytest.mark.parametrize('others', [17, 100])
def test_many_other_tokens_are_refused(others):
    """Segmenter appends its classes, SAN puts queries first: which it is cannot be known."""
    with pytest.raises(ValueError, match="isn't known.*tools/inspect_features.py") as error:
        measure_feature(Net(others), 'sequence:tokens', (3, 96, 96))
    assert str((1, 144 + others, 6)) in str(error.value)


def test_what_is_no_sequence_is_refused():
    with pytest.raises(ValueError, match='tokens have the shape'):
        GridSearch([], (3, 8, 8)).find(FeatureSource('x', is_tokens=True), torch.zeros(1, 5))


def test_a_grid_that_changes_with_the_image_is_an_error():
    model = Net(1)
    capture = dry_run(
        model, (3, 32, 32), [FeatureSource.parse('sequence:tokens')], 'teacher'
    ).capture
    model.others = 3
    with capture.record(model) as recording:
        model(torch.randn(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match='teacher: .* has 19 tokens, and 4 x 4 patches'):
        capture.features(recording, 'teacher')


def test_tokens_to_map_names_what_it_got():
    with pytest.raises(ValueError, match=r'\(1, 3, 2\) are no map of 2 x 2 patches'):
        tokens_to_map(torch.zeros(1, 3, 2), (2, 2))


class Runs(BaseModel):
    """A module that runs three times, and gives a list in a tuple."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.shared = nn.Identity()
        self.nested = Nested()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.conv(inputs)
        for factor in (1, 2, 3):
            self.shared(x * factor)
        self.nested(x)
        return x


class Nested(nn.Module):
    def forward(self, x):
        return x, [x * 5, (x * 6, x * 7)]


@pytest.mark.parametrize(('run', 'factor'), [(0, 1), (1, 2), (2, 3), (-1, 3), (-3, 1)])
def test_a_run_is_chosen(run, factor):
    model, inputs = Runs(), images()
    found = feature_of(model, f'shared[run={run}]', inputs)
    assert torch.equal(found, model.conv(inputs) * factor)
    given = feature_of(model, f'shared:input[run={run}]', inputs)
    assert torch.equal(given, found)


def test_runs_are_listed_when_none_is_chosen():
    with pytest.raises(RuntimeError, match='produced 3 features in one forward') as error:
        measure_feature(Runs(), 'shared', (3, 8, 8))
    for run in range(3):
        assert f"'shared[run={run}]' gave (1, 4, 8, 8)" in str(error.value)


@pytest.mark.parametrize('run', [3, -4])
def test_a_run_that_is_not_there(run):
    model = Runs()
    with pytest.raises((RuntimeError, ValueError), match=rf'no \[run={run}\]'):
        measure_feature(model, f'shared[run={run}]', (3, 8, 8))


@pytest.mark.parametrize(
    ('index', 'factor'), [('[0]', 1), ('[1][0]', 5), ('[1][1][0]', 6), ('[1][1][1]', 7)]
)
def test_indices_into_tuples_of_tuples(index, factor):
    model, inputs = Runs(), images()
    found = feature_of(model, f'nested{index}', inputs)
    assert torch.equal(found, model.conv(inputs) * factor)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'nested[1]',
            r"outputs a list of 2; say which one with an index, such as 'nested\[1\]\[0\]'",
        ),
        ('nested[1][2]', r'must be in 0\.\.1, got 2'),
        ('nested[0][1]', r'leave out \[1\]'),
    ],
)
def test_wrong_indices_into_tuples_of_tuples(text, message):
    with pytest.raises(ValueError, match=message):
        measure_feature(Runs(), text, (3, 8, 8))


def vit_student():
    config = pspnet()
    config.pop('auxiliary_head')
    config['backbone'] = dict(
        type='VisionTransformer', img_size=64, patch_size=16, embed_dims=8, num_layers=2,
        num_heads=2, out_indices=(1,), final_norm=False, with_cls_token=True,
    )  # fmt: skip
    config['decode_head'].update(in_channels=8, in_index=0)
    return config


@pytest.mark.parametrize('name', ['LADLoss', 'CADLoss', 'PADLoss', 'NaiveFeatureLoss'])
def test_every_loss_takes_tokens_of_a_student_and_a_map_of_a_teacher(name):
    pair = dict(student='backbone.layers.0:tokens', teacher='decode_head.bottleneck')
    algorithm = distill(
        student=vit_student(), distiller=feature_distiller(pair, loss=dict(type=name))
    ).train()
    losses = algorithm(images(size=64), samples(size=64), mode='loss')
    (key,) = [k for k in losses if k.startswith('distill')]
    assert key.endswith('backbone.layers.0.tokens')
    (features,) = algorithm.distiller.last_comparison.pairs.values()
    assert features.student.shape[1:] == (8, 4, 4)
    assert features.aligned.shape == features.teacher.shape
    if name == 'LADLoss':
        ours, theirs = features.aligned.flatten(1).double(), features.teacher.flatten(1).double()
        cosine = (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))
        weight = algorithm.distiller.distill_losses[next(iter(algorithm.distiller.distill_losses))]
        expected = (1 - cosine).mean() * weight.loss_weight
        assert losses[key].item() == pytest.approx(expected.item(), rel=1e-5)
    losses[key].backward()
    first = algorithm.student.backbone.layers[0].attn.attn.in_proj_weight.grad
    assert first is not None and first.abs().sum() > 0
    last = algorithm.student.backbone.layers[1].attn.attn.in_proj_weight.grad
    assert last is None or last.abs().sum() == 0


def test_tokens_of_a_compiled_teacher():
    """The patches tell the grid, so that they stay outside of the graphs."""
    pair = dict(student='decode_head.bottleneck', teacher='backbone.layers.1:tokens')
    found = []
    for graphs in (False, dict(backend='eager')):
        algorithm = distill(
            teacher=vit_student(), distiller=feature_distiller(pair), teacher_compile=graphs
        )
        for size in (32, 64):
            given = algorithm.frozen_teacher.extract_features(images(size=size), samples(size=size))
            found.append(*given.values())
    backbone = algorithm.teacher.backbone
    # a module in a graph has a forward of its own
    assert 'forward' in vars(backbone.layers[0])
    assert 'forward' not in vars(backbone.patch_embed)
    for plain, compiled in zip(found[:2], found[2:]):
        torch.testing.assert_close(compiled, plain)
    assert [tuple(f.shape[2:]) for f in found[:2]] == [(2, 2), (4, 4)]
