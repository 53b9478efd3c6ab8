"""The counters of a round without its arithmetic: every operator is dispatched, large ones do not compute.

A batch of medium.en takes minutes per round on a CPU, nearly all of it in products over large tensors. What is
counted (which operators are called, on which shapes) does not depend on the numbers in them: the number of tokens is
forced, and kernels are chosen by device, dtype and shape. So the true model runs its true round, and an operator on
large floating-point tensors returns zeros of the shape, strides and dtype that it would have returned, as torch's own
meta kernels tell them. Nothing is extrapolated: an operator more in any one token or layer is counted where it is.

Everything else (token ids, masks, views, whatever is small) is computed as ever. The zeros are memory that is never
touched, so that a batch which would need 20 GB takes next to none.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch

from perf_tests.matrix.cases import SETTINGS, Case
from perf_tests.subjects.subject import SHORT, Subject
from perf_tests.subjects.tensor_layout import Layout

from .counters import TOKEN_CHOICE, Counters, RoundCounter
from .flops import has_formula

# Elements of all tensor arguments together from which an operator is hollow: below, computing is no slower.
LARGE = 2**15
META = torch.device("meta")


def linear_add(x: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
    """What oneDNN's linear layer with an addend returns, (…, in) and (out, in) to (…, out)."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def weighted_rows(
    table: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor, *rest: object
) -> tuple[torch.Tensor, ...]:
    """What an embedding bag returns: (bags, features), and three of integers that only training looks at."""
    unused = indices.new_empty(0)
    return table.new_empty((offsets.shape[0], table.shape[1])), unused, unused, unused


# For operators that torch has no meta kernel of, or whose results are not all numbers; one that is not here and has no
# kernel either is computed.
META_KERNELS: dict[str, Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]] = {
    "mkldnn._linear_pointwise.binary": linear_add,
    "aten._embedding_bag_forward_only.default": weighted_rows,
}


class EndedEarlyError(RuntimeError):
    """A hollow round did not generate what was forced, so it was not the round that is to be counted."""


class HollowCounter(RoundCounter):
    """Counts like ``RoundCounter`` what runs on the CPU, without computing what is large."""

    def __init__(self) -> None:
        super().__init__()
        self._layouts: dict[Hashable, list[Layout] | Layout | None] = {}

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns: zeros of the right layout where it is large and gives numbers, else its result."""
        if func.is_view or _elements(args) < LARGE:
            return super().compute(func, args, kwargs)
        returns_new = func._schema.returns and all(each.alias_info is None for each in func._schema.returns)
        if func._schema.is_mutable and not returns_new:
            written = _written(func, args, kwargs)
            return super().compute(func, args, kwargs) if written is None else written
        key = (func, _describe(args), _describe(kwargs.items()) if kwargs else None)
        if key not in self._layouts:
            self._layouts[key] = _result_layout(func, args, kwargs)
        layout = self._layouts[key]
        if layout is None:
            return super().compute(func, args, kwargs)
        return self.zeros(layout) if isinstance(layout, Layout) else tuple(map(self.zeros, layout))

    def zeros(self, layout: Layout) -> torch.Tensor:
        """Zeros in place of a result."""
        return layout.zeros()


class ProductlessMode(HollowCounter):
    """Computes all but large products, convolutions and attention, in memory of torch's allocator.

    For a warm-up before memory is measured: weights that are laid out anew keep their numbers, and whatever is kept is
    the allocator's.
    """

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns, or zeros if it is a large product."""
        return super().compute(func, args, kwargs) if has_formula(func) else func(*args, **kwargs)

    def zeros(self, layout: Layout) -> torch.Tensor:
        """Zeros in place of a product."""
        return torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype).zero_()


def warm_up_without_products(subject: Subject) -> None:
    """A round of ``subject`` on a CPU that leaves behind what a round leaves, in a fraction of the time."""
    with ProductlessMode():
        subject.run_round()


def count_hollow_round(subject: Subject, case: Case) -> Counters:
    """Count a round of ``subject`` on a CPU, after a short one to warm up: what ``count_round`` would give.

    A model whose first round was hollow must not be used for its numbers any more: what it lays out or keeps is zeros.

    Raises:
        EndedEarlyError: the numbers decided how many tokens there are.
    """
    with HollowCounter():
        subject.generate(**SHORT)
    with HollowCounter() as counter:
        tokens = subject.generate()
    setting = SETTINGS[case.setting]
    if tokens.shape != (setting.batch_size, setting.new_tokens):
        raise EndedEarlyError(f"{case.id}: generated {tuple(tokens.shape)} tokens without arithmetic")
    return Counters(counter.operators, counter.flops, None, None, counter.by_operator)


def _result_layout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Layout] | Layout | None:
    """The layout of the result or results of ``func``; ``None`` where it must be computed.

    That is where a result is no floating-point tensor (nor the choice of a token, which is 0), and where there is no
    meta kernel.
    """
    own = META_KERNELS.get(str(func))
    try:
        result = (own or func)(*_as_meta(args), **{name: _as_meta(value) for name, value in kwargs.items()})
    except (NotImplementedError, RuntimeError):
        return None
    results = result if isinstance(result, tuple | list) else [result]
    chooses = own is not None or func is TOKEN_CHOICE
    if not all(isinstance(each, torch.Tensor) and (chooses or each.is_floating_point()) for each in results):
        return None
    layouts = [Layout.of(each) for each in results]
    return layouts[0] if isinstance(result, torch.Tensor) else layouts


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator that writes into an argument returns: that one; ``None`` where it must be computed."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    targets = [named[a.name] for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    one = len(targets) == len(func._schema.returns) == 1 and isinstance(targets[0], torch.Tensor)
    return targets[0] if one and targets[0].is_floating_point() else None


def _elements(values: Iterable[object]) -> int:
    """How many elements all tensors have together, those in lists included."""
    count = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            count += value.numel()
        elif isinstance(value, (tuple, list)):
            count += _elements(value)
    return count


def _describe(values: Iterable[object]) -> Hashable:
    """Values as part of a key; a tensor by its layout."""
    described: list[Hashable] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            described.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, (tuple, list)):
            described.append(_describe(value))
        else:
            described.append((type(value), value))
    return tuple(described)


def _as_meta(value: Any) -> Any:
    """The same argument without memory."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    if isinstance(value, tuple | list):
        return type(value)(map(_as_meta, value))
    return META if isinstance(value, torch.device) else value
