"""What a demo may show: tasks with their configs and metrics, and the trainings of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .shipped import shipped_folder

# Method -> what tables and figures call it, in their order.
LABELS = {
    'teacher': 'teacher',
    'student': 'student alone',
    'longer': 'student alone, as long as CAD',
    'LAD': 'LAD',
    'CAD': 'CAD',
}
DISTILLED = ('LAD', 'CAD')


class Task(NamedTuple):
    """What the demo shows.

    Attributes:
        teacher: Config below configs/quickstart, without '.py'; its weights are in weights/ there.
        student: The same, of the student with few labels.
        distill: The same, of LAD and CAD, with '{}' for their name.
        size: Height and width of the images.
        metric: What counts of a validation, as the log calls it.
        unit: What the table calls it, in percent.
        percent: What makes percent of it.
        title: Of the figure.
        options: Further options for --cfg-options, from the data's folder.
        costs: Seconds for an iteration of each method, measured with two trainings side by side on
            two cores of a server processor; only for the time that is expected.
    """

    teacher: str
    student: str
    distill: str
    size: int
    metric: str
    unit: str
    percent: int
    title: str
    options: Callable[[Path], dict]
    costs: dict[str, float]

    @property
    def configs(self) -> dict[str, Path]:
        """Config file of each method."""
        names = dict(
            teacher=self.teacher,
            student=self.student,
            longer=self.student,
            LAD=self.distill.format('lad'),
            CAD=self.distill.format('cad'),
        )
        folder = shipped_folder('configs') / 'quickstart'
        return {method: folder / f'{name}.py' for method, name in names.items()}

    @property
    def teacher_weights(self) -> Path:
        """The teacher's checkpoint that comes with the package."""
        return shipped_folder('configs') / 'quickstart/weights' / f'{self.teacher}.pth'


TASKS = {
    'seg': Task(
        teacher='pspnet_r18-w12_1xb16-4k_digit-scenes-48x48',
        student='pspnet_r18-w4_1xb16-1k_digit-scenes-48x48_50-labels',
        distill='{}_bottleneck_pspnet-r18-w12_pspnet-r18-w4_1xb16-1k_digit-scenes-48x48_50-labels',
        size=48,
        metric='mIoU',
        unit='mIoU',
        percent=1,
        title='Segmentation',
        options=lambda data_root: {},
        costs=dict(teacher=0.08, student=0.03, longer=0.03, LAD=0.1, CAD=0.1),
    ),
    'det': Task(
        teacher='retinanet_r18-w32_1xb16-3k_digit-scenes-64x64',
        student='retinanet_r18-w8_1xb16-1k_digit-scenes-64x64_200-labels',
        distill='{}_neck_retinanet-r18-w32_retinanet-r18-w8_1xb16-1k_digit-scenes-64x64_200-labels',
        size=64,
        metric='coco/bbox_mAP',
        unit='AP',
        percent=100,
        title='Detection',
        options=lambda data_root: {
            f'{part}_evaluator.ann_file': data_root / 'coco/val.json' for part in ('val', 'test')
        },
        costs=dict(teacher=0.15, student=0.06, longer=0.06, LAD=0.13, CAD=0.13),
    ),
}


@dataclass(frozen=True)
class Demo:
    """What is to be shown.

    Attributes:
        name: Key of ``TASKS``.
        work_dir: Has a folder for each training.
        data_root: Where the data are, or will be made.
        seeds: Of the students; each has labelled images of its own.
        iters: Iterations of every training; None for the configs'.
        train: Number of training images.
        val: Number of validation images.
        jobs: Trainings side by side.
        from_scratch: Whether the teacher is trained too, with the first seed.
    """

    name: str
    work_dir: Path
    data_root: Path
    seeds: Sequence[int]
    iters: int | None
    train: int
    val: int
    jobs: int
    from_scratch: bool = False

    @property
    def task(self) -> Task:
        """What belongs to the name."""
        return TASKS[self.name]


class Run(NamedTuple):
    """One training."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f'{self.method.lower()}-seed{self.seed}'
