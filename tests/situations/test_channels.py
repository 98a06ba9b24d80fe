"""Images of one, four or more channels: the model tells how many, whoever asks.

Reports: open-mmlab/mmsegmentation#667, #1668 and #2983 (multispectral and grey images).
"""

import json

import mmcv
import numpy as np
import pytest
import torch
from calling import call, inspect_features, make_distill_config
from helpers import build, distill, feature_distiller, preprocessor, pspnet, upernet_swin
from mmengine.model import BaseModel
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg.structures import SegDataSample
from torch import nn

from rawkd_mm.analysis import pictures
from rawkd_mm.analysis.benchmark import Benchmark, BenchmarkOptions
from rawkd_mm.analysis.benchmark_losses import check_losses
from rawkd_mm.analysis.benchmark_table import table
from rawkd_mm.features import image_channels
from rawkd_mm.training import load_config, replace_sync_batchnorm, run_one_iteration

SGD = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))


def one_mean(**kwargs):
    return preprocessor(mean=[100.0], std=[50.0], bgr_to_rgb=False, **kwargs)


def psp(channels, width=4, head=8, **kwargs):
    return pspnet(width, head, data_preprocessor=kwargs.pop('data_preprocessor', one_mean()),
                  backbone=dict(in_channels=channels), **kwargs)  # fmt: skip


def swin(channels):
    config = upernet_swin()
    config['data_preprocessor'] = one_mean()
    config['backbone']['in_channels'] = channels
    return config


class Patches(BaseModel):
    """A model of tokens: patches are cut out and go through a linear layer."""

    def __init__(self, channels):
        super().__init__()
        self.embed = nn.Linear(channels * 16, 8)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.embed(nn.functional.unfold(inputs, 4, stride=4).transpose(1, 2))


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 7])
@pytest.mark.parametrize('kind', [psp, swin, Patches], ids=['resnet', 'swin', 'linear'])
def test_the_first_layer_tells(kind, channels):
    """One mean for any number of channels; layers that see neighbours as channels."""
    model = kind(channels)
    model = model if isinstance(model, nn.Module) else build(model)
    assert image_channels(model) == channels


@pytest.mark.parametrize('means', [1, 3])
def test_means_do_not_tell(means):
    """mean=[1500.] of four bands; and three means, which the training itself will refuse."""
    given = preprocessor(mean=[1.0] * means, std=[1.0] * means, bgr_to_rgb=False)
    model = build(psp(4, data_preprocessor=given))
    assert image_channels(model) == 4


@pytest.mark.usefixtures('mmdet')
@pytest.mark.parametrize('channels', [3, 4])
def test_a_focus_layer_stacks_neighbours(channels):
    """YOLOX's first convolution takes four times as many channels as the image has."""
    cfg = load_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model
    model = build({'_scope_': 'mmdet', **cfg})
    stem = model.backbone.stem
    stem.conv.conv = nn.Conv2d(4 * channels, stem.conv.conv.out_channels, 3, padding=1)
    assert image_channels(model) == channels


def test_probing_leaves_no_trace():
    model = build(psp(4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    image_channels(model)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state()) and model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize('algorithm', ['FrozenTeacherDistill', 'mmrazor.SingleTeacherDistill'])
@pytest.mark.parametrize('channels', [1, 4])
def test_the_distiller_finds_out_shapes(algorithm, channels):
    """Its dry run, with both algorithms; and a step of the training."""
    given = dict(type=algorithm, student=psp(channels), teacher=psp(channels, 8, 16))
    if algorithm.startswith('mmrazor'):
        given.update(student=build(given['student']), teacher=build(given['teacher']))
        config = dict(
            type=algorithm, architecture=given['student'], teacher=given['teacher'],
            distiller={'_scope_': 'mmrazor', **feature_distiller()},
        )  # fmt: skip
        model = build(config)
    else:
        model = distill(**given)
    losses = run_one_iteration(model, SGD, (32, 32))
    assert np.isfinite(losses['loss']) and losses['distill.loss_cad_decode_head.bottleneck'] > 0
    assert model.distiller.dry_run_shape is None


def test_a_shape_that_is_given_is_used():
    given = feature_distiller(dry_run_shape=(4, 32, 32))
    assert distill(student=psp(4), teacher=psp(4, 8, 16), distiller=given).distiller.pairs
    with pytest.raises(RuntimeError, match=r'\(3, 32, 32\).*dry_run_shape'):
        wrong = feature_distiller(dry_run_shape=(3, 32, 32))
        distill(student=psp(4), teacher=psp(4, 8, 16), distiller=wrong)


def test_other_channels_than_the_teachers_are_refused():
    """One mean each, so that only the models show it."""
    with pytest.raises(ValueError, match='student takes images of 1 channels and the teacher of 4'):
        distill(student=psp(1), teacher=psp(4, 8, 16))


def test_a_teachers_checkpoint_is_checked(tmp_path):
    """Which weights are in use is found out by a forward, too; with MMRazor's distiller as well."""
    state = build(psp(4, 8, 16)).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'teacher.pth')
    recorder = dict(type='ModuleOutputs', source='decode_head.bottleneck')
    theirs = dict(
        type='ConfigurableDistiller',
        student_recorders=dict(f=recorder), teacher_recorders=dict(f=recorder),
        distill_losses=dict(l=dict(type='L2Loss')),
        loss_forward_mappings=dict(l=dict(
            s_feature=dict(recorder='f', from_student=True),
            t_feature=dict(recorder='f', from_student=False))),
    )  # fmt: skip
    for distiller in (feature_distiller(), theirs):
        model = distill(
            student=psp(4), teacher=psp(4, 8, 16), distiller=distiller,
            teacher_ckpt=str(tmp_path / 'teacher.pth'),
        )  # fmt: skip
        assert torch.equal(
            model.teacher.decode_head.bottleneck.conv.weight,
            state['decode_head.bottleneck.conv.weight'],
        )


CONFIG = """
default_scope = 'mmseg'
model = {model}
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(type='BaseSegDataset', pipeline=[dict(type='PackSegInputs')]))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs of students and teachers of 1, 4 and 10 bands, and weights of the teachers."""
    folder = tmp_path_factory.mktemp('bands')
    for channels in (1, 4, 10):
        models = dict(student=psp(channels), teacher=psp(channels, 8, 16))
        for role, model in models.items():
            text = json.dumps(model).replace('SyncBN', 'BN')
            text = text.replace('true', 'True').replace('false', 'False')
            (folder / f'{role}{channels}.py').write_text(CONFIG.format(model=text))
        torch.save(dict(state_dict=build(models['teacher']).state_dict()),
                   folder / f'teacher{channels}.pth')  # fmt: skip
    return folder


def make(channels, *args):
    return [
        make_distill_config, '--student', f'student{channels}.py', '--teacher',
        f'teacher{channels}.py', '--teacher-ckpt', f'teacher{channels}.pth', '--method', 'cad',
        '-o', f'out{channels}.py', '--force', *args,
    ]  # fmt: skip


@pytest.mark.parametrize('channels', [1, 4, 10])
def test_the_tools_take_such_models(folder, channels):
    """make_distill_config.py with its trial, and inspect_features.py (mmsegmentation#667)."""
    log = call(*make(channels), folder=folder)
    assert 'One iteration on 2 made-up images of 32x32 ran' in log and 'is written' in log
    names = [f'student{channels}.py', '--teacher', f'teacher{channels}.py']
    log = call(inspect_features, *names, '--json', 'x.json', folder=folder)
    listed = json.loads((folder / 'x.json').read_text())
    shapes = {f['feature']: f['shape'] for f in listed['student']['features']}
    assert shapes['decode_head.bottleneck'] == [8, 4, 4]


def test_the_tool_refuses_other_channels(folder):
    args = make(1, '--teacher', 'teacher4.py', '--teacher-ckpt', 'teacher4.pth')
    log = call(*args, folder=folder, fails=True)
    assert 'the student takes images of 1 channels and the teacher of 4' in log


def test_the_trial_normalises_as_the_training_does(folder):
    """Three means for four bands: MMSegmentation builds it and fails in the first iteration."""
    text = (
        (folder / 'student4.py').read_text().replace('"mean": [100.0]', '"mean": [1.0, 2.0, 3.0]')
    )
    text = text.replace('"std": [50.0]', '"std": [1.0, 1.0, 1.0]')
    (folder / 'wrong4.py').write_text(text)
    (folder / 'wrong_teacher4.py').write_text(
        "_base_ = './teacher4.py'\nmodel = dict(data_preprocessor=dict("
        'mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0]))'
    )
    args = make(4, '--student', 'wrong4.py', '--teacher', 'wrong_teacher4.py')
    log = call(*args, folder=folder, fails=True)
    assert 'one iteration on 2 made-up images of 32x32 failed' in log and 'size of tensor' in log


@pytest.mark.parametrize('channels', [1, 4])
def test_the_benchmark_measures_such_models(folder, channels):
    """Student alone, MMRazor and ours get the same images of that many channels."""
    call(*make(channels, '--no-check'), folder=folder)
    options = BenchmarkOptions(
        config=str(folder / f'out{channels}.py'), cfg_options=None, amp=False, batch=2, size=None,
        random_teacher=True, cpu_time=False, warmup=0, iters=1,
    )  # fmt: skip
    bench = Benchmark(options, torch.device('cpu'))
    variants = {n: bench.build_variant(n) for n in ('student', 'mmrazor', 'configured')}
    for variant in variants.values():
        assert variant.data['inputs'].shape == (2, channels, 32, 32)
        variant.measure()
    losses = {name: variant.losses_without_dropout() for name, variant in variants.items()}
    check_losses(losses, amp=False)
    assert losses['mmrazor'].keys() == losses['configured'].keys() > losses['student'].keys()
    result = bench.collect(list(variants.values()), dict.fromkeys(variants, 1.0), losses)
    assert result['channels'] == channels
    assert f'2 x {channels} x 32 x 32' in table(result)


@TRANSFORMS.register_module(force=True)
class LoadBands:
    """Reads an array from a file."""

    def __init__(self, dtype='float32'):
        self.dtype = dtype

    def __call__(self, results):
        image = np.load(results['img_path']).astype(self.dtype)
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


@DATASETS.register_module(force=True)
class Bands(BaseSegDataset):
    METAINFO = dict(classes=tuple('abcde'), palette=[[i, i, i] for i in range(5)])


def bands_in(folder, channels, dtype):
    """A data set of two images in .npy files, whose bands rise from left to right."""
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    for i in range(2):
        rising = np.linspace(0, 4000, 24) if i == 0 else np.linspace(4000, 0, 24)
        image = np.stack([np.tile(rising, (16, 1))] * channels, -1)
        np.save(folder / 'images' / f'{i}.npy', image.astype(np.uint16))
        mmcv.imwrite(np.full((16, 24), i, np.uint8), str(folder / 'labels' / f'{i}.png'))
    steps = [dict(type='LoadBands', dtype=dtype), dict(type='LoadAnnotations')]
    return Bands(
        data_root=str(folder), data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.npy', pipeline=[*steps, dict(type='PackSegInputs')],
    )  # fmt: skip


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 7])
def test_the_report_shows_what_can_be_shown(tmp_path, channels):
    """Arrays in a file of another kind: the first bands, stretched over all grey values."""
    data = bands_in(tmp_path, channels, 'float32')
    first, second = pictures.images_of(data, [0, 1])
    for picture in (first, second):
        assert picture.pixels.shape == (16, 24, 3) and picture.pixels.dtype == np.uint8
        assert (picture.pixels[..., 0] == picture.pixels[..., 2]).all()
    assert first.pixels[0, 0].tolist() == [0, 0, 0]
    assert first.pixels[0, -1].tolist() == [255, 255, 255]
    assert 110 < first.pixels[0, 12, 0] < 150
    assert second.pixels[0, 0].tolist() == [255, 255, 255]
    model = build(psp(channels)).eval()
    replace_sync_batchnorm(model)
    drawn = pictures.predictions_of(model, data, [0, 1])
    assert [p.pixels.shape for p in drawn] == [(16, 24, 3)] * 2
    truth = pictures.truth_of(data, [1])[0].pixels
    assert (truth == 1).all()


def test_a_photograph_is_shown_as_its_file_is(tmp_path):
    """Grey images that a pipeline reads with one channel, and colours in their order."""
    colours = np.zeros((16, 24, 3), np.uint8)
    colours[..., 2] = 200  # red, as OpenCV writes it
    mmcv.imwrite(colours, str(tmp_path / 'a.png'))
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png')))
    item = dict(inputs=torch.zeros(1, 8, 8, dtype=torch.uint8), data_samples=sample)
    (picture,) = pictures.images_of([item], [0])
    assert picture.pixels.shape == (16, 24, 3) and picture.pixels[0, 0].tolist() == [200, 0, 0]


def test_resized_bands_are_shown_in_their_own_size():
    """Boxes are where the file has them."""
    sample = SegDataSample(metainfo=dict(ori_shape=(32, 48)))
    item = dict(inputs=torch.rand(4, 16, 24), data_samples=sample)
    assert pictures.images_of([item], [0])[0].pixels.shape == (32, 48, 3)
