"""Datasets."""

from .digit_scenes import DigitScenesDataset
from .unlabelled_images import UnlabelledImages, UnreadableImageError

__all__ = ['DigitScenesDataset', 'UnlabelledImages', 'UnreadableImageError']
