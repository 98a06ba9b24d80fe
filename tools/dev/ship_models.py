#!/usr/bin/env python
"""Put finished trainings of sweeps into configs/digit_scenes, with config, weights, log and metric.

    python tools/dev/ship_models.py work_dirs/evidence/pspnet-4000/{student,cad-w3}-seed0

writes for each training

    configs/digit_scenes/NAME.py            its config, as what differs from one of configs/quickstart
    configs/digit_scenes/weights/NAME.pth   the student's weights alone: halves if that changes no
                                            digit of the training's metric, else float32
    configs/digit_scenes/weights/NAME.json  its log, JSON lines
    configs/digit_scenes/metafile.yml       an entry, with the command and the commit that made it

and the tables of configs/digit_scenes/README.md and of the methods' pages. NAME is that of the sweep's
folder and of the training's. Nothing is written if all weights and logs that come along would have more
than --megabytes together. The same command writes the same bytes. Without arguments models whose
weights were deleted are taken off the list, and the pages are written.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COLLECTION = {
    'Name': 'DigitScenes',
    'Metadata': {'Training Data': ['DigitScenes']},
    'README': 'configs/digit_scenes/README.md',
    'Frameworks': ['PyTorch'],
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('trainings', nargs='*', type=Path, metavar='FOLDER', help='of a training')
    parser.add_argument('--name', help='of the model, if there is one FOLDER')
    parser.add_argument(
        '--commit', help='that trained them; default: the last one before the training began'
    )
    parser.add_argument(
        '--replace',
        action='append',
        default=[],
        metavar='FROM=TO',
        help='how paths in the configs begin, and what that is in the repository; may be repeated',
    )
    parser.add_argument(
        '--megabytes', type=float, default=25, metavar='MB', help='at most in all (default: 25)'
    )
    args = parser.parse_args()
    if args.name and len(args.trainings) != 1:
        parser.error(f'--name is for one FOLDER, got {len(args.trainings)}')
    for text in args.replace:
        if '=' not in text:
            parser.error(f'--replace {text!r}: expected FROM=TO')
    return args


def check_formatter() -> None:
    """Refuse to write configs that cannot be laid out as the others are."""
    from rawkd_mm.analysis.shipped_models import ZooError

    if importlib.util.find_spec('ruff') is None:
        raise ZooError(
            f'ruff, which lays the configs out, is not installed for {sys.executable}. Install the '
            'version in requirements/tests.txt'
        )


def stage(args: argparse.Namespace, root: Path, staging: Path) -> list[dict]:
    """Write the files of all models into a folder; gives their entries."""
    from rawkd_mm.analysis.ship_training import default_name, read_finished, write_model
    from rawkd_mm.analysis.shipped_models import ZooError

    replace = dict(text.split('=', 1) for text in args.replace)
    names = [args.name] if args.name else [default_name(folder) for folder in args.trainings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ZooError(
            f'{twice} would be the names of several models; give them one by one, --name'
        )
    entries = []
    for folder, name in zip(args.trainings, names):
        training = read_finished(folder.resolve(), root, args.commit, replace)
        entry = write_model(training, name, root, staging)
        print(f'{name}: {entry["Results"][0]["Metrics"]}, {entry["Metadata"]["Stored As"]}')
        entries.append(entry)
    files = [str(path) for path in staging.glob('*.py')]
    if files:
        subprocess.run([sys.executable, '-m', 'ruff', 'format', '--quiet', *files], check=True)
    return entries


def check_size(root: Path, home: Path, staging: Path, most: float) -> None:
    """Refuse what would be too much."""
    from rawkd_mm.analysis.ship_training import total_size
    from rawkd_mm.analysis.shipped_models import ZooError

    new = {path.relative_to(staging): path for path in staging.rglob('*') if path.is_file()}
    old = {path.relative_to(home): path for path in home.rglob('*') if path.is_file()}
    quickstart = list((root / 'configs/quickstart/weights').glob('*'))
    size = total_size([*{**old, **new}.values(), *quickstart]) / 1e6
    if size > most:
        largest = sorted(new.values(), key=lambda path: -path.stat().st_size)[:5]
        sizes = ', '.join(f'{path.name} {path.stat().st_size / 1e6:.2f} MB' for path in largest)
        raise ZooError(
            f'with these all that comes along would have {size:.1f} MB, and at most {most:g} MB are '
            f'allowed (--megabytes). Nothing is written. The largest: {sizes}. Leave some out'
        )


def write_pages(root: Path) -> None:
    """Write all tables from the metafile."""
    from rawkd_mm.analysis.shipped_models import METAFILE, read_shipped
    from rawkd_mm.analysis.shipped_pages import make_page, with_part
    from rawkd_mm.analysis.text_files import write_text

    models = read_shipped(root)
    write_text(root / METAFILE.parent / 'README.md', make_page(root, models))
    for page in sorted((root / 'configs').glob('*/README.md')):
        if page.parent != root / METAFILE.parent and '\n## Assumptions\n' in page.read_text():
            write_text(page, with_part(root, page.parent.name, models))


def ship(args: argparse.Namespace, root: Path) -> None:
    from rawkd_mm.analysis.shipped_models import METAFILE, read_metafile, write_metafile

    if args.trainings:
        check_formatter()
    home, staging = root / METAFILE.parent, root / 'configs/.digit_scenes_new'
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        entries = stage(args, root, staging)
        check_size(root, home, staging, args.megabytes)
        shutil.copytree(staging, home, dirs_exist_ok=True)
    finally:
        shutil.rmtree(staging)
    known = {entry['Name']: entry for entry in read_metafile(root / METAFILE)['Models']}
    known |= {entry['Name']: entry for entry in entries}
    gone = {name: e for name, e in known.items() if not (root / e['Weights']).is_file()}
    left_over = list(home.glob('*_student.py'))
    for name, entry in gone.items():
        print(f'{name}: {entry["Weights"]} is not there; it is off the list')
        left_over += [home / f'{name}.py', home / f'weights/{name}.json']
        del known[name]
    # a config of a student alone may be that of several models, which are evaluated with it
    used = {entry['Config'] for entry in known.values()}
    used |= {entry['Metadata'].get('Student', {}).get('Config') for entry in known.values()}
    for path in left_over:
        if path.relative_to(root).as_posix() not in used:
            path.unlink(missing_ok=True)
    models = sorted(known.values(), key=lambda entry: entry['Name'])
    write_metafile(root / METAFILE, dict(Collections=[COLLECTION], Models=models))
    write_pages(root)


def main() -> None:
    args = parse_args()
    from rawkd_mm.analysis.shipped_models import ZooError
    from rawkd_mm.training import UsageError

    try:
        ship(args, ROOT)
    except (ZooError, UsageError) as error:
        sys.exit(f'ship_models.py: error: {error}')


if __name__ == '__main__':
    main()
