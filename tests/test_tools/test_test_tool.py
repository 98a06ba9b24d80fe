import json

import numpy as np
import torch
from PIL import Image
from tool_project import TOOLS


def test_student_of_a_distillation_is_that_of_mmseg(project, two_process_log):
    """Without the teacher's checkpoint, and with the metrics of mmseg's own tool."""
    checkpoint = torch.load(project.folder / 'runs/two/iter_4.pth', weights_only=False)
    # after four iterations all is background, which any two models agree about
    torch.manual_seed(0)
    checkpoint['state_dict']['decode_head.conv_seg.weight'].normal_()
    checkpoint['state_dict']['decode_head.conv_seg.bias'].zero_()
    torch.save(checkpoint, project.folder / 'runs/mixed.pth')

    ours = project.run(
        TOOLS / 'dist_test.sh', 'distillation.py', 'runs/mixed.pth', '2',
        '--work-dir', 'runs/ours', '--out', 'runs/ours/png', '--show-dir', 'runs/ours/painted',
        '--cfg-options', 'model.teacher_ckpt=nowhere.pth',
    )  # fmt: skip
    project.run_mmseg('test.py', 'student.py', 'runs/mixed.pth', '--work-dir', 'runs/theirs')
    (theirs,) = (project.folder / 'runs/theirs').glob('*/*.json')
    theirs = json.loads(theirs.read_text())
    ours_metrics = project.metrics('runs/ours')
    assert ours_metrics['mIoU'] == theirs['mIoU'] > 0
    assert f'mIoU: {theirs["mIoU"]:g}' in ours
    images = list((project.folder / 'runs/ours/png').glob('*.png'))
    assert len(images) == 16
    assert len({int(label) for file in images for label in np.unique(Image.open(file))}) > 2
    assert list((project.folder / 'runs/ours/painted').rglob('*.png'))
    plain = (project.folder / 'runs/ours/distillation_student.py').read_text()
    assert 'FrozenTeacherDistill' not in plain
    assert 'FeatureGeometryHook' not in plain


def test_missing_weights_are_an_error(project, two_process_log):
    checkpoint = torch.load(project.folder / 'runs/two/iter_4.pth', weights_only=False)
    weights = checkpoint['state_dict']
    for name in ('backbone.layer1.0.conv1.weight', 'decode_head.conv_seg.bias'):
        del weights[name]
    for name in [n for n in weights if n.endswith('num_batches_tracked')]:
        del weights[name]
    torch.save(checkpoint, project.folder / 'runs/gaps.pth')
    log = project.run(TOOLS / 'test.py', 'distillation.py', 'runs/gaps.pth', fails=True)
    message = log[log.index('test.py: error: ') :]
    assert 'runs/gaps.pth' in message
    assert ': backbone.layer1.0.conv1.weight, decode_head.conv_seg.bias.' in message


def test_tta_on_a_checkpoint_of_mmrazor(project, one_process_log):
    """Student and teacher below prefixes, and augmented in the test."""
    weights = {f'architecture.{k}': v for k, v in project.weights('runs/one/iter_4.pth').items()}
    weights['teacher.backbone.stem.0.weight'] = torch.zeros(1)
    torch.save(dict(state_dict=weights), project.folder / 'runs/razor.pth')
    project.run(
        TOOLS / 'test.py', 'student.py', 'runs/razor.pth', '--tta', '--work-dir', 'runs/tta',
        fresh=True,
    )  # fmt: skip
    assert project.metrics('runs/tta')['mIoU'] > 0


def test_a_checkpoint_that_does_not_exist(project):
    log = project.run(TOOLS / 'test.py', 'student.py', 'nowhere.pth', fails=True)
    assert "CKPT: 'nowhere.pth' is not a file" in log
