"""DigitScenes as a dataset of MMSegmentation."""

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from .digit_scenes_folder import CLASSES, IGNORE, PALETTE, command_for, find_problem


@DATASETS.register_module()
class DigitScenesDataset(BaseSegDataset):
    """Handwritten digits on dimmed photographs: background and ten digits, 255 is ignored.

    The images are made by ``tools/dataset_converters/digit_scenes.py``, without a download. For
    detection the same folder has ``coco/train.json`` and ``coco/val.json``, to be read by
    MMDetection's ``CocoDataset`` with ``classes=DigitScenesDataset.METAINFO['classes'][1:]``.

    Args:
        data_prefix: Names the split, e.g.
            ``dict(img_path='images/train', seg_map_path='annotations/train')``.
        data_root: The folder that was made. Defaults to 'data/digit_scenes'.
        **kwargs: As for ``BaseSegDataset``.

    Raises:
        FileNotFoundError: When the list of images is read and the folder is missing or incomplete;
            the text has the command that makes it.
    """

    METAINFO = dict(classes=CLASSES, palette=[list(colour) for colour in PALETTE])

    def __init__(
        self,
        data_prefix: dict,
        data_root: str = 'data/digit_scenes',
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        ignore_index: int = IGNORE,
        **kwargs,
    ) -> None:
        super().__init__(
            data_prefix=data_prefix,
            data_root=data_root,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            ignore_index=ignore_index,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        problem = find_problem(self.data_root)
        if problem:
            raise FileNotFoundError(
                f'DigitScenes cannot be loaded: {problem}. Run this in the folder of rawkd_mm, and '
                f'start again:\n    {command_for(self.data_root)}'
            )
        return super().load_data_list()
