"""Fixtures that several test files share; small models are built in helpers.py.

What takes seconds is imported where it is used: pytest-xdist's own process needs none of it.
"""

import fcntl
import logging
import os
import pickle
import subprocess
from pathlib import Path

import fork_server
import pytest

TESTS = Path(__file__).parent
# What pytest-xdist's processes begin with: the longest first, as one that begins last is run alone.
# Seconds are in docs/data/test_durations.csv. What is not listed follows as it was collected.
LONGEST = (
    'sweep', 'tests/test_tools/test_analysis_tools/test_weight_sweep_grid.py',
    'tests/test_compat.py', 'tests/test_tools/test_faults.py::test_torchrun',
    'tests/test_bench_gpu.py', 'tests/test_tools/test_report.py', 'tests/test_tools/test_demo.py',
    'tests/test_tools/test_rawkd_command.py',
    'tests/test_configs_coco.py', 'tests/test_tools/test_make_distill_config.py',
    'tests/test_algorithms/test_teacher_speed.py', 'tests/test_tools/test_detector.py',
    'tests/test_algorithms/test_teacher_speed_search.py',
    'tests/test_tools/test_unlabelled.py', 'tests/test_teachers/test_external_in_tools.py',
    'tests/test_tools/test_external_teachers_end_to_end.py',
    'tests/test_hooks/test_unlabelled_images_hook.py',
    'tests/test_tools/test_dump_config.py', 'tests/test_tools/test_test_tool.py',
    'tests/test_tools/test_faults.py', 'tests/test_hooks/test_resumable_checkpoint_hook.py',
    'tests/test_datasets/test_digit_scenes.py', 'tests/test_configs.py',
    'tests/test_numerics/test_loss_properties.py',
    'tests/test_hooks/test_teacher_sanity_hook.py', 'tests/bad_input/test_bad_settings.py',
    'tests/test_algorithms/test_frozen_teacher.py', 'tests/test_functional.py',
    'tests/test_algorithms/test_frozen_teacher_distill.py',
    'tests/test_tools/test_analysis_tools/test_benchmark_distill.py',
    'tests/test_numerics/test_fgd_properties.py', 'tests/test_tools/test_guide.py',
)  # fmt: skip
# Tests of several files that look at one sweep of trainings.
SWEEP = ('test_weight_sweep.py', 'test_plot_weight_sweep.py', 'test_plot_feature_geometry.py')


def group_of(nodeid: str) -> str:
    """Give what a test is run together with, in one process: usually its file.

    The tests of test_faults.py share nothing that costs time, and are long.
    """
    file = nodeid.partition('::')[0]
    if file.endswith(SWEEP):
        return 'sweep'
    return nodeid if file.endswith('test_faults.py') else file


def pytest_itemcollected(item):
    """Mark what needs MMDetection, and with it MMCV's compiled operators."""
    if 'mmdet' in getattr(item, 'fixturenames', ()):
        item.add_marker('det')


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}

    def rank(item):
        names = (group_of(item.nodeid), item.nodeid.partition('::')[0])
        return min(ranks.get(name, len(ranks)) for name in names)

    if 'PYTEST_XDIST_WORKER' in os.environ:
        items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """``--dist loadfile`` that keeps the order, and knows which files belong together."""
    if config.option.dist != 'loadfile':
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # it would sort by number of tests
    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def warnings_are_logged():
    """A tool that an earlier test ran in this process may have disabled them."""
    from mmengine.logging import MMLogger

    logging.disable(logging.NOTSET)
    # MMEngine's loggers, which Python's logging does not know, remember what was disabled
    for logger in MMLogger._instance_dict.values():
        logger._cache.clear()


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    """What several of pytest-xdist's processes need is made by the first of them that asks.

    ``once(name, make)`` gives what ``make()`` has given, in whichever process.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent

    def once(name, make):
        result = folder / f'{name}.pickle'
        with (folder / f'{name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not result.exists():
                    made = pickle.dumps(make())
                    result.write_bytes(made)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)
        return pickle.loads(result.read_bytes())

    return once


@pytest.fixture(scope='session')
def fast_python(once):
    """A Python that has imported everything already: see fork_server.py."""
    owner = os.getppid() if 'PYTEST_XDIST_WORKER' in os.environ else os.getpid()
    return once('fork_server', lambda: fork_server.start(owner))


@pytest.fixture(scope='session')
def mmdet():
    """MMDetection, for which the compiled operators of MMCV are needed."""
    from rawkd_mm.compat import has_mmcv_ops, installed_versions

    if installed_versions()['mmdet'] is None or not has_mmcv_ops():
        pytest.skip('MMDetection or the compiled operators of MMCV are not installed')
    import mmdet.models

    return mmdet


@pytest.fixture(scope='session')
def run_processes(tmp_path_factory, fast_python, once):
    """Runs a script in gloo processes; gives what each saved as rank<i>.pth in the folder it got."""
    import torch

    def start(script, count, timeout):
        folder = tmp_path_factory.mktemp(script.stem)
        paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, script.parent)))
        environment = {**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
        command = [fast_python, '-m', 'torch.distributed.run', f'--nproc_per_node={count}']
        command += ['--master_addr=127.0.0.1', '--master_port=0', '--rdzv_backend=c10d']
        command += ['--rdzv_endpoint=127.0.0.1:0', str(script), str(folder)]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-6000:]}'
        return folder

    def run(script, count, timeout=300):
        folder = once(f'{script.stem}-{count}', lambda: start(script, count, timeout))
        return [torch.load(folder / f'rank{i}.pth', weights_only=False) for i in range(count)]

    return run


@pytest.fixture(scope='session')
def two_processes(run_processes):
    """What helpers.py found out in two processes, one dict for each."""
    return run_processes(TESTS / 'helpers.py', 2)
