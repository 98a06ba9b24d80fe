"""Packages `rawkd_mm` with its `.mim` folder: configs, tools and model-index.yml.

`mim` looks for these in `<package>/.mim`, as all OpenMMLab packages ship them. An editable install
gets symlinks, so that an edited config is the one in use; a wheel gets copies.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_PARTS = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds `.mim`. `pip install -e .` comes through here too (PEP 660), not through `develop`."""

    def run(self):
        if self.editable_mode:
            super().run()
            self.link_mim(ROOT / 'rawkd_mm' / '.mim')
        else:
            # A build folder left by an earlier build would put files since deleted into the wheel.
            shutil.rmtree(Path(self.build_lib, 'rawkd_mm'), ignore_errors=True)
            super().run()
            self.copy_mim(Path(self.build_lib, 'rawkd_mm', '.mim'))

    def link_mim(self, mim):
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir()
        for part in MIM_PARTS:
            os.symlink(Path('..', '..', part), mim / part)  # relative: the checkout may be moved

    def copy_mim(self, mim):
        mim.mkdir(parents=True)
        for part in MIM_PARTS:
            if (ROOT / part).is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / part, mim / part, ignore=ignore)
            else:
                shutil.copy(ROOT / part, mim / part)


def version():
    text = (ROOT / 'rawkd_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


def readme():
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


setup(
    name='rawkd_mm',
    version=version(),
    description='Angular feature distillation (LAD, CAD) for OpenMMLab segmentors and detectors',
    long_description=readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    py_modules=['rawkd'],  # the command; its docstring says why it is not in the package
    entry_points={'console_scripts': ['rawkd = rawkd:main']},
    packages=find_packages(include=['rawkd_mm', 'rawkd_mm.*']),
    package_data={'rawkd_mm.analysis': ['*.jinja', '*.json']},
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # mmcv, mmengine, mmseg and mmdet are missing here on purpose. Each comes as one of two
    # distributions that install the same import name (onedl-mmcv or mmcv, ...), and a requirement
    # cannot say "either": naming one would install it over the other. So the extras `modern` and
    # `classic` name them, and `rawkd_mm.compat` says at import what is missing.
    install_requires=[
        'torch>=2.1',
        'torchvision>=0.16',
        'numpy>=1.23',
        'filelock>=4',  # torch needs it too, in any version
        'mmrazor==1.0.0',  # the last release; `rawkd_mm.compat` is written for exactly this one
        'joblib>=1.2',  # imported by mmrazor, not declared by it
        # imported by mmseg; mmsegmentation 1.2.2 does not declare them
        'ftfy>=6.1',
        'regex',
    ],
    extras_require={
        'modern': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmsegmentation>=1.4.2',
        ],
        # OpenMMLab's own last releases. They fit together in one way only, hence the exact pins.
        'classic': [
            'torch==2.1.2',
            'torchvision==0.16.2',
            'numpy<2',
            'mmengine==0.10.7',
            'mmcv==2.1.0',
            'mmsegmentation==1.2.2',
            'mmdet==3.3.0',
            'opencv-python-headless<4.12',  # the last that runs with numpy<2
        ],
        'det': ['onedl-mmdetection>=3.5.1'],  # with `modern`; `classic` has its mmdet
        'demo': ['scikit-learn>=1.3', 'matplotlib>=3.7', 'jinja2>=3.1'],
        'analysis': ['scipy>=1.9', 'matplotlib>=3.7'],  # tables and figures of sweeps
        # teachers from other libraries
        'timm': ['timm>=1.0.20', 'safetensors>=0.4'],
        'transformers': ['transformers>=5.20', 'safetensors>=0.4'],
        'torchvision': ['torchvision>=0.16'],
        'tests': [
            'pytest>=8',
            'pytest-timeout>=2.3',
            'pytest-xdist>=3',
            'hypothesis>=6.100',
            'ruff',
            'scikit-learn>=1.3',
            'scipy>=1.9',
        ],
    },
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
