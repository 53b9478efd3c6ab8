"""Floating-point operations of an operator, by formula: torch's own, and those that torch lacks.

A multiplication and an addition are two operations; only products and attention count, as in torch. The formulas
here take shapes: those of some operands, then that of the result.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

Shape = torch.Size


def product_flops(a: Shape, result: Shape) -> int:
    """A product of (..., k) with a matrix of n columns, whatever is added to it: 2·rows·k·n."""
    return 2 * a.numel() * result[-1]


def matrix_vector_flops(matrix: Shape, result: Shape) -> int:
    """A matrix times a vector, or a vector times one: 2·rows·columns."""
    return 2 * matrix.numel()


def weighted_rows_flops(indices: Shape, result: Shape) -> int:
    """Rows scaled and added up, as many as there are indices: 2·rows·columns."""
    return 2 * indices.numel() * result[-1]


def attention_flops(query: Shape, key: Shape, value: Shape, result: Shape) -> int:
    """Both products of attention, 2·B·H·Q·K·(d_k + d_v); shapes are (batch, heads, length, head size)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])


def attention_backward_flops(query: Shape, key: Shape, value: Shape, result: Shape) -> int:
    """The five products of a fused attention's backward pass, 2·B·H·Q·K·(3·d_k + 2·d_v).

    The scores again (d_k), and the gradients of weights (d_v), values (d_v), queries (d_k) and keys (d_k).
    """
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (3 * width + 2 * value[-1])


def convolution_flops(weight: Shape, result: Shape) -> int:
    """A convolution with a weight of (out, in per group, *kernel): 2·outputs·inputs per group·kernel."""
    return 2 * result.numel() * weight[1:].numel()


class Formula(NamedTuple):
    """A formula and the positions of its operands among an operator's arguments."""

    compute: Callable[..., int]
    operands: tuple[int, ...]


# By namespace, operator and overload ("" for all). The plain products torch knows too, but it takes their arguments
# apart as trees at every call. oneDNN's fused operators are `mkldnn`'s; where something is added to the product
# ("binary"), it is the second argument.
OWN = {
    ("aten", "_scaled_dot_product_flash_attention_for_cpu", ""): Formula(attention_flops, (0, 1, 2)),
    ("aten", "_scaled_dot_product_flash_attention_for_cpu_backward", ""): Formula(attention_backward_flops, (1, 2, 3)),
    ("aten", "_scaled_dot_product_fused_attention_overrideable", ""): Formula(attention_flops, (0, 1, 2)),
    ("aten", "mm", ""): Formula(product_flops, (0,)),
    ("aten", "bmm", ""): Formula(product_flops, (0,)),
    ("aten", "addmm", ""): Formula(product_flops, (1,)),
    ("aten", "baddbmm", ""): Formula(product_flops, (1,)),
    ("aten", "mv", ""): Formula(matrix_vector_flops, (0,)),
    ("aten", "dot", ""): Formula(matrix_vector_flops, (0,)),
    ("aten", "addmv", ""): Formula(matrix_vector_flops, (1,)),
    ("aten", "addbmm", ""): Formula(product_flops, (1,)),
    ("aten", "_addmm_activation", ""): Formula(product_flops, (1,)),
    ("aten", "_embedding_bag_forward_only", ""): Formula(weighted_rows_flops, (1,)),
    ("aten", "mkldnn_linear", ""): Formula(product_flops, (0,)),
    ("aten", "mkldnn_convolution", ""): Formula(convolution_flops, (1,)),
    ("mkldnn", "_linear_pointwise", ""): Formula(product_flops, (0,)),
    ("mkldnn", "_convolution_pointwise", "default"): Formula(convolution_flops, (1,)),
    ("mkldnn", "_convolution_pointwise", "binary"): Formula(convolution_flops, (2,)),
}


def count_flops(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Operations of one call of a dispatched ``operator``; 0 where there is no formula for it."""
    formula = _formula_of(operator)
    if formula is None:
        return 0
    if not isinstance(formula, Formula):
        return int(formula(*args, **kwargs, out_val=result))
    output = result[0] if isinstance(result, tuple | list) else result
    return formula.compute(*(args[index].shape for index in formula.operands), output.shape)


def has_formula(operator: Any) -> bool:
    """Whether the operations of a dispatched ``operator`` count: it is a product, a convolution or attention."""
    return _formula_of(operator) is not None


@functools.cache
def _formula_of(operator: Any) -> Formula | Callable[..., int] | None:
    """A formula of our own, else torch's."""
    namespace, name, overload = str(operator).split(".")
    own = OWN.get((namespace, name, "")) or OWN.get((namespace, name, overload))
    return own or flop_registry.get(operator.overloadpacket)
