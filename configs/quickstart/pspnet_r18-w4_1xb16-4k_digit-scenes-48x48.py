# The student alone.
_base_ = [
    '../_base_/models/pspnet_r18_narrow.py',
    '../_base_/datasets/digit_scenes.py',
    '../_base_/schedules/digit_scenes_4k.py',
    '../_base_/default_runtime.py',
]
