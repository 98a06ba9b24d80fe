#!/usr/bin/env python
"""Evaluate all models whose weights come along, and compare them with what is published.

Runs tools/test.py for each model of the metafiles that has a file of weights (configs/digit_scenes, and
the teachers of configs/quickstart), makes the data if they are not there, and prints a table. The exit
code is 1 if a metric differs in a digit that is published.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# where configs look for DigitScenes: the size of the images there
DATA = {'data/digit_scenes': 48, 'data/digit_scenes_64': 64}


def choose(models: list, texts: list[str]) -> list:
    """Give the models that have one of the texts in their names."""
    if not texts:
        return models
    for text in texts:
        if not any(text in model.name for model in models):
            sys.exit(
                f'check_zoo.py: error: --only {text!r}: no model has it in its name; there are '
                f'{[model.name for model in models]}'
            )
    return [model for model in models if any(text in model.name for text in texts)]


def make_data(root: Path, models: list) -> None:
    """Make the scenes that the models are evaluated on, unless they are there."""
    from rawkd_mm.analysis.shipped import make_digit_scenes
    from rawkd_mm.training import load_config

    needed = {
        load_config(str(root / model.config)).test_dataloader.dataset.data_root for model in models
    }
    for folder in sorted(needed & DATA.keys()):
        try:
            make_digit_scenes(folder, DATA[folder], cwd=root)
        except subprocess.CalledProcessError:
            sys.exit('check_zoo.py: error: the data could not be made, see above')


def check(root: Path, model) -> tuple[str, str, str]:
    """Evaluate a model; gives a verdict, what was measured, and the error if there was one."""
    from rawkd_mm.analysis.shipped_models import ZooError, evaluate_with_tool, publish

    try:
        metric, value = publish(evaluate_with_tool(root, model.config, model.weights))
    except ZooError as error:
        return 'FAILED', '', str(error)
    if (metric, value) == (model.metric, model.value):
        return 'same', value, ''
    return 'DIFFERS', value, ''


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', nargs='+', default=[], metavar='TEXT', help='models with one of these in the name'
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='evaluations side by side')
    args = parser.parse_args()
    from rawkd_mm.analysis.shipped_models import ZooError, read_shipped

    try:
        models = choose(read_shipped(ROOT), args.only)
    except ZooError as error:
        sys.exit(f'check_zoo.py: error: {error}')
    make_data(ROOT, models)
    print('| model | metric | published | measured | |\n|---|---|---|---|---|', flush=True)
    wrong = []
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda model: check(ROOT, model), models)
        for model, (verdict, value, error) in zip(models, results):
            row = (model.name, model.metric, model.value, value, verdict)
            print(f'| {" | ".join(row)} |', flush=True)
            if error:
                print(error, file=sys.stderr, flush=True)
            if verdict != 'same':
                wrong.append(model.name)
    if wrong:
        sys.exit(f'check_zoo.py: {len(wrong)} of {len(models)} are not as published: {wrong}')
    print(f'{len(models)} of {len(models)} are as published')


if __name__ == '__main__':
    main()
