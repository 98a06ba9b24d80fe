import shutil

from tool_project import TOOLS


def test_it_needs_no_other_file(project, dumped_log):
    text = (project.folder / 'dumped/self_contained.py').read_text()
    assert 'cfg_path' not in text
    assert '_base_' not in text
    assert str(project.folder) not in text
    assert "custom_imports = dict(allow_failed_imports=False, imports=['rawkd_mm'])" in ' '.join(
        text.split()
    ).replace('( ', '(').replace('[ ', '[').replace(', ]', ']')
    assert "now relative: model.teacher_ckpt = 'runs/teacher/iter_4.pth'" in dumped_log
    assert 'python tools/train.py self_contained.py' in dumped_log


def test_it_is_not_overwritten_unasked(project, dumped_log):
    out = 'dumped/self_contained.py'
    log = project.run(TOOLS / 'dump_config.py', 'student.py', out, fails=True)
    assert 'overwrite it with --force' in log


def test_mmseg_trains_it_in_another_folder(project, dumped_log, teacher_log, tmp_path):
    """With mmseg's own tool, in a folder that has the data, the teacher's weights and this file."""
    shutil.copy(project.folder / 'dumped/self_contained.py', tmp_path)
    shutil.copytree(project.folder / 'data', tmp_path / 'data')
    (tmp_path / 'runs/teacher').mkdir(parents=True)
    shutil.copy(project.folder / 'runs/teacher/iter_4.pth', tmp_path / 'runs/teacher')
    project.run_mmseg(
        'train.py', 'self_contained.py', '--work-dir', 'work',
        '--cfg-options', 'train_cfg.max_iters=2', cwd=tmp_path, fresh=True,
    )  # fmt: skip
    (folder,) = (tmp_path / 'work').glob('*/vis_data')
    assert 'distill.loss' in (folder / 'scalars.json').read_text()
    assert (tmp_path / 'work/iter_2.pth').is_file()
