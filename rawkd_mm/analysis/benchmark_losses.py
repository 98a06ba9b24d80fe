"""Compares the losses of a benchmark's variants, which must compute the same."""

# By how much a loss may differ, relative to the larger of it and 0.1.
TOLERANCES = {'fp32': 1e-3, 'fp16': 1e-2, 'bf16': 5e-2}


class BenchmarkError(Exception):
    """Nothing can be measured; the message says why."""


def precision_of(name: str, amp: bool) -> str:
    """Give the lowest precision that a variant computes in.

    Args:
        name (str): Of the variant, such as 'bf16+channels_last'.
        amp (bool): Whether the student trains in mixed precision.

    Returns:
        str: Key of ``TOLERANCES``.
    """
    low = [part for part in name.split('+') if part in ('bf16', 'fp16')]
    return low[0] if low else 'bf16' if amp else 'fp32'


def check_losses(losses: dict, amp: bool, found: dict | None = None) -> None:
    """Compare every variant's losses with those of the first that has them.

    Args:
        losses (dict): Variant -> {name: value}.
        amp (bool): Whether the student trains in mixed precision.
        found (dict, optional): Variant -> the teacher's precision, where ``teacher_speed`` and not the
            variant's name tells it. Defaults to None.

    Raises:
        BenchmarkError: If they differ by more than the precision explains.
    """
    expected: dict = {}
    precisions = {name: precision_of(f'{name}+{(found or {}).get(name)}', amp) for name in losses}
    for name, values in losses.items():
        for key, value in values.items():
            first, wanted = expected.setdefault(key, (name, value))
            tolerance = max(TOLERANCES[precisions[n]] for n in (name, first))
            # NaN must not pass
            if not abs(value - wanted) <= tolerance * max(abs(wanted), 0.1):
                raise BenchmarkError(
                    f'{key} is {value:.6g} of {name} and {wanted:.6g} of {first}: they do not '
                    f'compute the same (tolerance {tolerance:g})'
                )
