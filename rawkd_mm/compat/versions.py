"""Which versions of other packages are installed, and which the tests have run with."""

import importlib.util
import warnings
from importlib.metadata import PackageNotFoundError, version

__all__ = ['TESTED_VERSIONS', 'check_versions', 'installed_versions', 'tested_text']

# Import name -> {distribution name: versions the tests have run with}. Of several distributions that
# provide the same import name the first installed one counts.
TESTED_VERSIONS = {
    'torch': {'torch': ('2.14', '2.10', '2.1')},
    'mmengine': {'onedl-mmengine': ('0.10.12',), 'mmengine': ('0.10.7',)},
    'mmcv': {'onedl-mmcv': ('2.3.6',), 'mmcv': ('2.1.0',)},
    'mmseg': {'onedl-mmsegmentation': ('1.4.2',), 'mmsegmentation': ('1.2.2',)},
    'mmdet': {'onedl-mmdetection': ('3.5.1',), 'mmdet': ('3.3.0',)},
    'mmrazor': {'mmrazor': ('1.0.0',)},
}
# Other distributions of the same import names, not yet tested.
_OTHER_DISTRIBUTIONS = {
    'mmengine': ('mmengine-lite',),
    'mmcv': ('mmcv-lite',),
}
_OPTIONAL = ('mmdet',)
# MMRazor and MMSegmentation 1.2.2 import these packages and do not declare them.
_UNDECLARED = {'joblib': 'mmrazor', 'ftfy': 'mmseg', 'regex': 'mmseg'}


def installed_versions() -> dict:
    """Find the installed distribution of every package that rawkd_mm builds on.

    Returns:
        dict[str, tuple[str, str] | None]: Import name -> (distribution, version), ``None`` where
        nothing that provides the import name is installed.
    """
    found = {}
    for name, tested in TESTED_VERSIONS.items():
        found[name] = None
        for distribution in (*tested, *_OTHER_DISTRIBUTIONS.get(name, ())):
            try:
                found[name] = (distribution, version(distribution))
                break
            except PackageNotFoundError:
                continue
        else:
            # e.g. a source tree on PYTHONPATH: it works, but has no metadata with a version
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None:
                found[name] = (name, 'unknown')
    return found


def version_texts() -> dict[str, str]:
    """Give the installed packages of :func:`installed_versions` as texts, beside what is measured.

    Returns:
        dict[str, str]: Import name -> distribution and version, such as 'onedl-mmcv 2.3.6'.
    """
    return {name: ' '.join(found) for name, found in installed_versions().items() if found}


def tested_text(name: str) -> str:
    """Name the tested versions of a package, for messages."""
    return ' or '.join(
        f'{distribution} {"/".join(versions)}'
        for distribution, versions in TESTED_VERSIONS[name].items()
    )


def _is_tested(name: str, distribution: str, installed: str) -> bool:
    tested = TESTED_VERSIONS[name].get(distribution, ())
    public = installed.split('+')[0]
    return any(public == v or public.startswith(f'{v}.') for v in tested)


def check_versions() -> None:
    """Compare the installed packages with the tested ones.

    Raises:
        ImportError: If a required package is missing; names all that are, with tested versions.

    Warns:
        UserWarning: If a package is installed in a version that the tests have not run with.
    """
    found = installed_versions()
    missing = [n for n, f in found.items() if f is None and n not in _OPTIONAL]
    undeclared = [n for n in _UNDECLARED if importlib.util.find_spec(n) is None]
    if missing or undeclared:
        lines = [f'  {n}: tested with {tested_text(n)}' for n in missing]
        lines += [f'  {n}: any version; {_UNDECLARED[n]} imports it undeclared' for n in undeclared]
        raise ImportError(
            'rawkd_mm needs packages that are not installed:\n'
            + '\n'.join(lines)
            + '\nInstall them, for example with `pip install -r requirements.txt` of rawkd_mm.'
        )
    untested = [n for n, f in found.items() if f is not None and not _is_tested(n, *f)]
    if untested:
        warnings.warn(
            'rawkd_mm is untested with '
            + '; '.join(f'{" ".join(found[n])} (tested: {tested_text(n)})' for n in untested),
            stacklevel=2,
        )
