"""Teachers of other libraries, as a user runs them: config, training, report, mmseg's own test tool."""

import json

import pytest
import torch
from tool_project import TOOLS

# A module of one's own that says which images it takes.
OWN = """
from torch import nn

class Net(nn.Module):
    images = dict(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channel_order='bgr')

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 24, 3, padding=1))

    def forward(self, x):
        return self.block(self.stem(x))
"""


def teacher_of(library, folder):
    """Give what a user writes for a teacher and its weights, which the library has saved."""
    torch.manual_seed(0)
    path = folder / f'{library}_teacher.pth'
    if library == 'timm':
        model = pytest.importorskip('timm').create_model('test_vit')
        torch.save(model.state_dict(), path)
        return 'timm::test_vit', path.name
    if library == 'hf':
        transformers = pytest.importorskip('transformers')
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32
        )
        transformers.AutoModel.from_config(config).save_pretrained(folder / 'hf_teacher')
        transformers.ViTImageProcessor().save_pretrained(folder / 'hf_teacher')
        return 'hf::hf_teacher', 'pretrained'
    if library == 'torchvision':
        import torchvision

        model = torchvision.models.mobilenet_v3_small()
        torch.save(model.state_dict(), path)
        return 'torchvision::mobilenet_v3_small', path.name
    (folder / 'my_models.py').write_text(OWN)
    names = {}
    exec(OWN, names)
    torch.save(names['Net']().state_dict(), path)
    return 'module::my_models.Net', path.name


@pytest.mark.parametrize('library', ['timm', 'hf', 'torchvision', 'module'])
def test_from_the_name_to_the_metrics(project, library):
    name, ckpt = teacher_of(library, project.folder)
    config, work_dir = f'{library}.py', f'runs/{library}'
    log = project.run(
        TOOLS / 'make_distill_config.py', '--teacher', name, '--teacher-ckpt', ckpt,
        '--student', 'student.py', '--method', 'cad', '-o', config,
    )  # fmt: skip
    assert 'features[0]' in log and 'One iteration on 2 made-up images of 32x32 ran' in log
    assert 'Other classes' not in log

    log = project.run(TOOLS / 'train.py', config, '--work-dir', work_dir)
    assert 'all loaded' in log
    name = 'distill.loss_cad_decode_head.bottleneck'
    losses = [entry[name] for entry in project.scalars(work_dir) if 'loss' in entry]
    assert len(losses) == 4 and all(0 < loss < 20 for loss in losses)

    report = TOOLS / 'analysis_tools/report.py'
    page = project.run(report, work_dir, '--images', '2').splitlines()[-1]
    assert 'features[0]' in (project.folder / page).read_text()

    # the checkpoint is the student's, and mmseg's own tool tests it with the student's own config
    project.run_mmseg(
        'test.py', 'student.py', f'{work_dir}/iter_4.pth', '--work-dir', f'runs/{library}_mmseg'
    )
    (file,) = (project.folder / f'runs/{library}_mmseg').glob('*/*.json')
    tested = json.loads(file.read_text().splitlines()[0])
    trained = next(s for s in project.scalars(work_dir) if 'mIoU' in s)
    assert tested['mIoU'] == trained['mIoU']


def test_options_of_a_teacher(project):
    pytest.importorskip('timm')
    name, ckpt = teacher_of('timm', project.folder)
    arguments = ['--teacher', name, '--teacher-ckpt', ckpt, '--method', 'lad']
    log = project.run(
        TOOLS / 'make_distill_config.py', *arguments, '--student', 'student.py', '-o', 'options.py',
        '--teacher-options', 'out_indices=[1,5]', 'norm=False',
    )  # fmt: skip
    text = (project.folder / 'options.py').read_text()
    assert 'out_indices=[1, 5]' in text and 'norm=False' in text
    assert "teacher='features[1]'" in text and "the teacher's features[0]" in log
    make = TOOLS / 'make_distill_config.py'
    for given, message in (
        (['--teacher', 'timm::no_such_vit'], 'has no model'),
        (['--teacher', 'student.py', '--teacher-options', 'norm=False'], 'they are for teachers'),
        (
            ['--student', 'timm::resnet18', '--teacher', name],
            'A student is a model of MMSegmentation',
        ),
        (['--teacher', name, '--teacher-ckpt', 'student.py'], 'cannot be read as a checkpoint'),
    ):
        options = {'--teacher-ckpt': ckpt, '--student': 'student.py'}
        options.update(zip(given[::2], given[1::2]))
        flat = [x for pair in options.items() for x in pair]
        assert message in ' '.join(
            project.run(make, *flat, '--method', 'lad', '-o', 'no.py', fails=True).split()
        )
    assert not (project.folder / 'no.py').exists()


def test_inspection(project):
    pytest.importorskip('timm')
    log = project.run(TOOLS / 'inspect_features.py', 'student.py', '--teacher', 'timm::test_resnet')
    assert 'features[0]' in log and 'network.layer4' in log
