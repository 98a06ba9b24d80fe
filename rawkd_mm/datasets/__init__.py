"""Datasets."""

from .digit_scenes import DigitScenesDataset
from .unlabelled_images import LabelsNeededError, UnlabelledImages, UnreadableImageError

__all__ = ['DigitScenesDataset', 'LabelsNeededError', 'UnlabelledImages', 'UnreadableImageError']
