"""Norms and dot products of feature maps: exact, and fast on a CPU.

``benchmarks/reductions.py`` compares the two ways of reducing rows. On a CPU the one in blocks is the
faster one, because the maps are read from memory once and products are not stored.
"""

import torch
from torch import Tensor

from .compat import find_is_compiling

__all__ = ['compute_dtype', 'norm', 'norms_and_dot', 'reduce_rows', 'reduce_rows_in_blocks']

_is_compiling = find_is_compiling()

# So many bytes of rows are reduced at once: they stay in a CPU's cache.
_BLOCK_BYTES = 4 << 20


def compute_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    """Give the type that two features are reduced in: float64 if either is, else float32."""
    double = torch.float64 in (student.dtype, teacher.dtype)
    return torch.float64 if double else torch.float32


def norm(feature: Tensor, dims: tuple) -> Tensor:
    """Give the norm over some dimensions, which stay with size 1.

    One dimension is reduced at a time. A single reduction over 1e7 values adds sequentially on the
    CPU and loses digits. A difference of two norms, or an angle near 0, consists of these digits.

    Args:
        feature (Tensor): Of any shape, in the type that the norm is computed in.
        dims (tuple[int, ...]): The dimensions.

    Returns:
        Tensor: The norms.
    """
    for dim in reversed(dims):
        feature = torch.linalg.vector_norm(feature, dim=dim, keepdim=True)
    return feature


def norms_and_dot(student: Tensor, teacher: Tensor, dims: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """Give both norms and the dot product over some dimensions, which stay with size 1.

    Where the channels' values lie one after the other, each channel is reduced by itself; a layer is
    then the sum of its channels. That is much faster than a reduction over several dimensions, and as
    exact.

    Args:
        student (Tensor): Shape (B, C, ...), floating point.
        teacher (Tensor): The same shape.
        dims (tuple[int, ...]): All dimensions but the first, all but the first two, or (1,).

    Returns:
        tuple[Tensor, Tensor, Tensor]: Norm of the student, norm of the teacher, dot product; float32,
        or float64 if an input is.
    """
    shape = student.shape
    dtype = compute_dtype(student, teacher)
    if dims == (1,) or not (student.is_contiguous() and teacher.is_contiguous()):
        student, teacher = student.to(dtype), teacher.to(dtype)
        dot = (student * teacher).sum(dim=dims, keepdim=True)
        return norm(student, dims), norm(teacher, dims), dot
    is_compiling = _is_compiling()
    # generated code sums a whole layer in one go, and as exactly
    kept = shape[:1] if 1 in dims and is_compiling else shape[:2]
    rows = student.reshape(kept.numel(), -1), teacher.reshape(kept.numel(), -1)
    in_blocks = student.device.type == 'cpu' and not is_compiling
    reduce = reduce_rows_in_blocks if in_blocks else reduce_rows
    sizes = (*kept, *([1] * (len(shape) - len(kept))))
    n, m, dot = (part.view(sizes) for part in reduce(*rows, dtype))
    if 1 in dims:
        n, m, dot = norm(n, (1,)), norm(m, (1,)), dot.sum(dim=1, keepdim=True)
    return n, m, dot


def reduce_rows(
    student: Tensor, teacher: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the norms and the dot product of each row of two matrices: the way of GPUs and of graphs.

    Args:
        student (Tensor): Shape (R, K).
        teacher (Tensor): Shape (R, K).
        dtype (torch.dtype): What is computed in.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Norms of the student's rows, of the teacher's, dot products;
        shape (R,) each.
    """
    student, teacher = student.to(dtype), teacher.to(dtype)
    norms = (torch.linalg.vector_norm(x, dim=1) for x in (student, teacher))
    return *norms, (student * teacher).sum(dim=1)


def reduce_rows_in_blocks(
    student: Tensor, teacher: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what :func:`reduce_rows` does, on a CPU, block by block and without storing the products.

    Args:
        student (Tensor): Shape (R, K).
        teacher (Tensor): Shape (R, K).
        dtype (torch.dtype): What is computed in.

    Returns:
        tuple[Tensor, Tensor, Tensor]: As :func:`reduce_rows`.
    """
    size = max(1, _BLOCK_BYTES // (dtype.itemsize * student.shape[1]))
    parts = []
    for s, t in zip(student.split(size), teacher.split(size)):
        s, t = s.to(dtype), t.to(dtype)
        norms = (torch.linalg.vector_norm(x, dim=1) for x in (s, t))
        with torch.autocast('cpu', enabled=False):  # which would round to bfloat16
            # With the second factor laid out like this, (R, K, 1) with stride 1 along K, the BLAS
            # needs one call for all rows.
            dot = torch.bmm(s.unsqueeze(1), t.unsqueeze(1).transpose(1, 2)).flatten()
        parts.append((*norms, dot))
    return tuple(torch.cat(part) for part in zip(*parts))
