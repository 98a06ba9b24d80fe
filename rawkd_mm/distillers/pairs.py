"""Pairs of features, as a config names them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..features import FeatureSource
from ..registry import type_name

__all__ = ['FeaturePair', 'parse_pairs']

# The other keys of a pair are those that the distiller may give for all pairs.
_OWN_KEYS = ('student', 'teacher', 'align', 'name')


class FeaturePair(NamedTuple):
    """One student feature, the teacher feature that it is compared with, and how.

    Attributes:
        name (str): Name of the log entry, such as ``'loss_cad_decode_head.bottleneck'``.
        student (FeatureSource): Where the student's feature comes from.
        teacher (FeatureSource): Where the teacher's feature comes from.
        align (str | dict | None): 'auto', the config of a connector, or None.
        loss (dict): Config of the loss.
        student_connector (dict | None): Config of what the aligned student feature goes through.
        teacher_connector (dict | None): Config of what the teacher's feature goes through.
    """

    name: str
    student: FeatureSource
    teacher: FeatureSource
    align: str | dict | None
    loss: dict
    student_connector: dict | None
    teacher_connector: dict | None

    @property
    def key(self) -> str:
        """Key in the module dicts, where no dot is allowed: of the loss and of ``align``."""
        return self.name.replace('.', '_')

    def connector_key(self, role: str) -> str:
        """Key of the student's or the teacher's connector."""
        return f'{self.key}_{role}'


def _method_name(loss: dict) -> str:
    """'CADLoss' -> 'cad', 'mmrazor.ChannelWiseDivergence' -> 'channelwisedivergence'."""
    return type_name(loss['type']).lower().replace('loss', '')


def parse_pairs(pairs: Sequence[dict], shared: dict[str, dict | None]) -> list[FeaturePair]:
    """Check the configs of pairs and name them.

    Args:
        pairs (Sequence[dict]): The ``pairs`` of a ``FeatureDistiller``.
        shared (dict): For the pairs that lack a key: loss, student_connector, teacher_connector.

    Returns:
        list[FeaturePair]: The pairs.

    Raises:
        TypeError: If the pairs are no list of dicts.
        ValueError: If a pair lacks something, has an unknown key, or two have one name.
    """
    if isinstance(pairs, dict) or not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise TypeError(f'pairs must be a list of dicts, got {type(pairs).__name__}: {pairs!r}')
    complete = [_complete(i, pair, shared) for i, pair in enumerate(pairs)]
    sources = [[FeatureSource.parse(p[role]) for role in ('student', 'teacher')] for p in complete]
    # The student's feature names the entry; where that is not unique, the teacher's helps.
    names = [
        pair.get('name') or f'{_method_name(pair["loss"])}_{student.label}'
        for pair, (student, _) in zip(complete, sources)
    ]
    result = []
    for pair, (student, teacher), name in zip(complete, sources, names):
        if names.count(name) > 1 and 'name' not in pair:
            name = f'{name}_{teacher.label}'
        # MMEngine sums what has 'loss' in its name and backpropagates it.
        pair['name'] = name if name.startswith('loss') else f'loss_{name}'
        result.append(FeaturePair(**{**pair, 'student': student, 'teacher': teacher}))
    keys = [pair.key for pair in result]
    twice = sorted({pair.name for pair in result if keys.count(pair.key) > 1})
    if twice:
        raise ValueError(f'several pairs would be logged as {twice}; give each a name=...')
    return result


def _complete(i: int, pair: dict, shared: dict[str, dict | None]) -> dict:
    """Check the config of one pair and fill in what it lacks, the name excepted."""
    if not isinstance(pair, dict):
        raise TypeError(
            f"pairs[{i}] must be a dict such as dict(student='decode_head.bottleneck', "
            f"teacher='decode_head.bottleneck'), got {pair!r}"
        )
    unknown = sorted(set(pair) - {*_OWN_KEYS, *shared})
    missing = [key for key in ('student', 'teacher') if key not in pair]
    if unknown or missing:
        raise ValueError(
            f'pairs[{i}] has unknown keys {unknown} and lacks {missing}; a pair has student, '
            'teacher and optionally loss, align, student_connector, teacher_connector, name'
        )
    if not isinstance(pair.get('name', ''), str):
        raise ValueError(f'name of pairs[{i}] must be a string, got {pair["name"]!r}')
    pair = {'align': 'auto', **shared, **pair}
    if not _is_config(pair['loss']):
        raise ValueError(
            f'pairs[{i}] has no loss: give it one, loss=dict(type=...), or give the distiller '
            f'one for all pairs; got {pair["loss"]!r}'
        )
    align = pair['align']
    if align is not None and align != 'auto' and not isinstance(align, dict):
        raise ValueError(
            f"align of pairs[{i}] must be 'auto', None or the config of a connector, got {align!r}"
        )
    for key in ('student_connector', 'teacher_connector'):
        if pair[key] is not None and not _is_config(pair[key]):
            raise ValueError(
                f'{key} of pairs[{i}] must be None or the config of a connector, '
                f'dict(type=...), got {pair[key]!r}'
            )
    return pair


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and 'type' in value
