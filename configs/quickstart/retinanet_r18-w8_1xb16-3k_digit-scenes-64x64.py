# The student alone.
_base_ = [
    '../_base_/models/retinanet_r18_narrow.py',
    '../_base_/datasets/digit_scenes_detection.py',
    '../_base_/schedules/digit_scenes_detection_3k.py',
    '../_base_/detection_runtime.py',
]
