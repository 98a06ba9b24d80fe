"""numpy: what its pickles ask for."""

__all__ = ['numpy_globals']


def numpy_globals() -> dict[str, object]:
    """Find what pickles of numpy arrays and numbers call, by the names that any numpy has given it.

    numpy 2 moved ``numpy.core`` to ``numpy._core``, and gave each dtype a class.
    """
    import numpy

    core = getattr(numpy, '_core', None)
    if not hasattr(core, 'multiarray'):  # numpy 1.26 has an empty one
        core = numpy.core
    found = {
        f'numpy.{module}.multiarray.{name}': getattr(core.multiarray, name)
        for module in ('core', '_core')
        for name in ('scalar', '_reconstruct')
    }
    dtypes = getattr(numpy, 'dtypes', None)  # since numpy 1.25
    for name in dir(dtypes):
        if name.endswith('DType') and name != 'ObjectDType':
            found[f'numpy.dtypes.{name}'] = getattr(dtypes, name)
    return found
