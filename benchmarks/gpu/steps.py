"""The steps of `make bench-gpu`, the most important first."""

from dataclasses import dataclass

_CAD = 'configs/cad/cad_'
# Name -> title, config, and whether it needs MMDetection and MMCV's compiled operators.
PAIRS = {
    'pspnet-r18': (
        'PSPNet-R101 -> PSPNet-R18',
        f'{_CAD}bottleneck_pspnet-r101_pspnet-r18_8xb2-80k_cityscapes-512x1024.py',
        False,
    ),
    'upernet-swin-t': (
        'UPerNet-SwinB -> UPerNet-SwinT',
        f'{_CAD}fpn-bottleneck_upernet-swin-b_upernet-swin-t_8xb2-80k_cityscapes-512x1024.py',
        False,
    ),
    'pspnet-mv2': (
        'PSPNet-R101 -> PSPNet-MobileNetV2',
        f'{_CAD}bottleneck_pspnet-r101_pspnet-mv2_8xb2-80k_cityscapes-512x1024.py',
        False,
    ),
    'retinanet-r50': (
        'RetinaNet-X101 -> RetinaNet-R50',
        f'{_CAD}neck_retinanet-x101_retinanet-r50_8xb2-2x_coco.py',
        True,
    ),
}
PRECISIONS = {'amp': 'mixed precision', 'fp32': 'float32'}
_QUICKSTART = 'configs/quickstart/cad_'
SMALL_PAIRS = {
    'pspnet-r18': (
        "the quickstart's PSPNets",
        f'{_QUICKSTART}bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-4k_digit-scenes-48x48.py',
        False,
    ),
    'retinanet-r50': (
        "the quickstart's RetinaNets",
        f'{_QUICKSTART}neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-3k_digit-scenes-64x64.py',
        True,
    ),
}


@dataclass(frozen=True)
class Step:
    """A command of its own process.

    Attributes:
        name: Of its log and its entry in the report.
        title: What it does, for readers.
        command: What follows ``python``; ``{out}`` is the folder of the results.
        result: The file that it writes there.
        expected: Seconds that it may take on an H100. A guess: nobody has measured it yet.
        limit: Seconds after which it is stopped.
        detection: Whether it needs MMDetection and MMCV's compiled operators.
    """

    name: str
    title: str
    command: tuple
    result: str
    expected: int
    limit: int
    detection: bool = False


def benchmark(pairs: dict, pair: str, precision: str, expected: int, *options) -> Step:
    """Give the step that measures a pair in one precision of the student."""
    title, config, detection = pairs[pair]
    name = f'{pair}_{precision}'
    command = ['tools/analysis_tools/benchmark_distill.py', config, '--random-teacher', *options]
    command += ['--amp'] * (precision == 'amp') + ['--json', f'{{out}}/{name}.json']
    title = f'{title}, {PRECISIONS[precision]}'
    return Step(name, title, tuple(command), f'{name}.json', expected, 2 * expected + 60, detection)


def tests(*paths: str) -> Step:
    """Give the step that runs the tests that need a GPU."""
    command = ('-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'gpu', '--junitxml')
    command = (*command, '{out}/gpu_tests.xml', *paths)
    return Step('gpu_tests', 'tests that need a GPU', command, 'gpu_tests.xml', 90, 300)


def script(
    name: str, title: str, path: str, expected: int, *args, result: str = 'json', inputs=()
) -> Step:
    """Give the step of a program that has an option --json, or whose first argument is a CSV."""
    file = f'{name}.{result}'
    target = ('--json', f'{{out}}/{file}') if result == 'json' else (f'{{out}}/{file}',)
    command = (path, *inputs, *target, *args)
    return Step(name, title, command, file, expected, 2 * expected + 60)


def full_steps() -> list[Step]:
    """Give the steps for a GPU."""
    images = ('--batch', '2', '--size', '512', '1024')
    options = (*images, '--iters', '20', '--warmup', '5', '--memory-jobs', '4')

    def pair(name, precision, expected):
        return benchmark(PAIRS, name, precision, expected, *options)

    segmentation = [config for _, config, detection in PAIRS.values() if not detection]
    data = '{out}/digit_scenes_256'
    return [
        tests('tests'),
        pair('pspnet-r18', 'amp', 170),
        script(
            'loss_share', "the losses' part of a step, mixed precision", 'benchmarks/loss_share.py',
            90, *images, '--amp', inputs=segmentation,
        ),
        script(
            'training', 'a training, killed and resumed', 'benchmarks/gpu/training.py', 120,
            inputs=[data],
        ),
        script(
            'two_processes', 'two processes on one device', 'benchmarks/gpu/two_processes.py', 90,
            '--seconds', '60', inputs=[data],
        ),
        pair('pspnet-r18', 'fp32', 170),
        script('losses', 'the cost of the losses', 'benchmarks/losses.py', 90, '--iters', '32',
               result='csv'),
        pair('upernet-swin-t', 'amp', 240),
        pair('pspnet-mv2', 'amp', 180),
        pair('retinanet-r50', 'amp', 240),
        script(
            'precision', 'what low precision changes', 'benchmarks/precision.py', 90,
            '--size', '512', '1024', '--only', '512x', '--precisions', 'bf16', 'fp16', result='csv',
        ),
        pair('upernet-swin-t', 'fp32', 240),
        pair('pspnet-mv2', 'fp32', 180),
        pair('retinanet-r50', 'fp32', 240),
    ]  # fmt: skip


def small_steps() -> list[Step]:
    """Give the steps for a CPU: all kinds of them, so small that their times say nothing."""
    images = ('--batch', '2', '--size', '48', '48')
    options = (*images, '--iters', '2', '--warmup', '1')
    config = SMALL_PAIRS['pspnet-r18'][1]
    data = '{out}/digit_scenes_48'

    def pair(name, precision, *variants):
        variants = ('--variants', 'student', 'mmrazor', *variants)
        return benchmark(SMALL_PAIRS, name, precision, 60, *options, *variants)

    return [
        tests('tests/test_losses_fgd.py'),
        pair('pspnet-r18', 'amp', 'configured', 'auto'),
        script(
            'loss_share', "the losses' part of a step, mixed precision", 'benchmarks/loss_share.py',
            30, *images, '--amp', '--iters', '3', '--warmup', '1', inputs=[config],
        ),
        script(
            'training', 'a training, killed and resumed', 'benchmarks/gpu/training.py', 60,
            '--iters', '40', '--small', inputs=[data],
        ),
        script(
            'two_processes', 'two processes on one device', 'benchmarks/gpu/two_processes.py', 60,
            '--iters', '4', '--seconds', '150', '--small', inputs=[data],
        ),
        pair('pspnet-r18', 'fp32', 'configured', 'auto_fp32'),
        script(
            'losses', 'the cost of the losses', 'benchmarks/losses.py', 30, '--iters', '4',
            '--shapes', 'small', '--methods', 'LAD', 'LAD plain', 'CAD', 'CAD plain', result='csv',
        ),
        script(
            'precision', 'what low precision changes', 'benchmarks/precision.py', 30,
            '--config', config, '--size', '48', '48', result='csv',
        ),
        pair('retinanet-r50', 'fp32', 'configured'),
    ]  # fmt: skip
