# For configs whose base is a whole config of MMDetection, which has its own runtime.
# Everything rawkd_mm registers: FrozenTeacherDistill, FeatureDistiller, the losses, hooks, datasets.
custom_imports = dict(imports=['rawkd_mm'], allow_failed_imports=False)
