"""The compiled attention against the formula in float64: any shape, special numbers, threads; and whom it serves."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from whisper_flash_attention import cpu_attention, cpu_library, kernels
from whisper_flash_attention.cpu_attention import FEWEST_QUERIES
from whisper_flash_attention.flash_attention import attention_forward

from .compare import assert_half_close, assert_same
from .step_cases import DTYPES, assert_near, at_odd_address, bits, levels
from .tiny import make_pair, mel_features

pytestmark = pytest.mark.skipif(cpu_library.why_not() is not None, reason=str(cpu_library.why_not()))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Without gradients, and what was not written in new memory is not a number."""
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


class Plan(NamedTuple):
    """Sizes of a call, and whether each row has its heads side by side, as projections have them."""

    batch: int = 1
    heads: int = 2
    queries: int = 60
    keys: int = 150
    head_dim: int = 24
    dtype: torch.dtype = torch.float32
    projected: bool = True
    threads: int = 2

    def inputs(self) -> list[Tensor]:
        """Query, key and value."""
        generator = torch.Generator().manual_seed(0)
        made = []
        for length in (self.queries, self.keys, self.keys):
            lengths = (length, self.heads) if self.projected else (self.heads, length)
            x = torch.randn(self.batch, *lengths, self.head_dim, generator=generator).to(self.dtype)
            made.append(x.transpose(1, 2) if self.projected else x)
        return made


def formula(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention in float64."""
    scores = query.double() @ key.double().transpose(2, 3) * scale
    return torch.softmax(scores, dim=-1) @ value.double()


def assert_right(inputs: list[Tensor], scale: float = 0.3, threads: int = 2) -> Tensor:
    """On every level it is the formula's; what the highest gives."""
    expected = formula(*inputs, scale)
    for level in levels():
        actual = cpu_attention.run(*inputs, scale, threads=threads, level=level)
        assert actual.dtype == inputs[0].dtype
        assert_near(actual, expected)
    return actual


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    about = st.sampled_from([1, 2, 15, 16, 17, 48, 49, 63, 64, 65, 95, 96, 97, 128, 193])
    return Plan(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        queries=draw(st.one_of(about, st.integers(1, 300))),
        keys=draw(st.one_of(about, st.integers(1, 300))),
        head_dim=draw(st.one_of(st.sampled_from([16, 24, 32, 64, 80, 128]), st.integers(1, 130))),
        dtype=draw(st.sampled_from(DTYPES)),
        projected=draw(st.booleans()),
        threads=draw(st.integers(1, 4)),
    )


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@example(Plan(heads=6, queries=1500, keys=1500, head_dim=64))
@example(Plan(heads=2, queries=1500, keys=1500, head_dim=64, dtype=torch.bfloat16))
@given(plans())
def test_any_shape(plan: Plan) -> None:
    assert_right(plan.inputs(), plan.head_dim**-0.5, plan.threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_at_any_address(dtype: torch.dtype) -> None:
    assert_right([at_odd_address(each) for each in Plan(dtype=dtype, projected=False).inputs()])


def test_it_errs_no_more_than_pytorchs() -> None:
    inputs = Plan(heads=6, queries=1500, keys=1500, head_dim=64).inputs()
    for scale in (0.01, 0.125, 1.0):
        expected = formula(*inputs, scale)
        theirs = nn.functional.scaled_dot_product_attention(*inputs, scale=scale)
        errors = [(each - expected).square().mean().sqrt() for each in (assert_right(inputs, scale), theirs)]
        assert errors[0] <= 1.3 * errors[1]


# ---- Special numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("operand", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_stays_where_the_formula_has_it(dtype: torch.dtype, operand: str, number: float) -> None:
    inputs = Plan(dtype=dtype).inputs()
    inputs[["query", "key", "value"].index(operand)][0, 1, 40, 3] = number
    out = assert_right(inputs)
    assert out[0, 0].isfinite().all()
    assert not out[0, 1].isfinite().all()


@pytest.mark.parametrize("hidden", [slice(64), slice(64, 128), slice(1, 150), slice(149, 150)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_minus_infinity_weigh_nothing(dtype: torch.dtype, hidden: slice) -> None:
    query, key, value = Plan(dtype=dtype).inputs()
    query[..., 0] = 1
    key[:, :, hidden, 0] = -math.inf
    assert assert_right([query, key, value]).isfinite().all()


def test_scores_of_nothing_but_minus_infinity_are_no_number() -> None:
    query, key, value = Plan().inputs()
    query[..., 0] = 1
    key[..., 0] = -math.inf
    assert assert_right([query, key, value]).isnan().all()


@pytest.mark.parametrize("most", [1e2, 1e4, 3e38])
@pytest.mark.parametrize("descending", [False, True])
def test_far_scores(descending: bool, most: float) -> None:
    """The largest comes first or last, and the others are further below it than any exponential reaches."""
    query, key, value = Plan().inputs()
    query.zero_()[..., 0] = 1
    key[..., 0] = torch.linspace(-most, most, key.shape[2])
    assert_right([query, key.flip(2) if descending else key, value])


# ---- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    inputs = Plan(batch=2, heads=3, queries=250, dtype=dtype).inputs()
    for level in levels():
        alone = cpu_attention.run(*inputs, 0.3, threads=1, level=level)
        for threads in (2, 3, 5, 8):
            assert torch.equal(bits(cpu_attention.run(*inputs, 0.3, threads=threads, level=level)), bits(alone))


def test_a_level_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="lacks the level"):
        cpu_attention.run(*Plan().inputs(), 0.3, threads=1, level=len(cpu_library.LEVELS))


# ---- Whom it serves -------------------------------------------------------------------------------------------------

SERVED = Plan(queries=FEWEST_QUERIES)
fastest = pytest.mark.skipif(
    cpu_library.why_not() is not None or not cpu_library.level(),
    reason=cpu_library.why_not() or "this processor has the portable level alone",
)


def backend_of(inputs: list[Tensor], **options: Any) -> str:
    """The kernel that serves a call."""
    module = nn.Module()
    attention_forward(module, *inputs, **({"attention_mask": None} | options))
    return str(module.backend)


@fastest
@pytest.mark.parametrize("projected", [True, False])
def test_many_queries_are_served(projected: bool) -> None:
    inputs = SERVED._replace(projected=projected).inputs()
    assert backend_of(inputs) == f"compiled for {cpu_library.LEVELS[cpu_library.level()]}"
    out, weights = attention_forward(nn.Module(), *inputs, None, scaling=0.3)
    assert_near(out.transpose(1, 2), formula(*inputs, 0.3))
    assert weights is None


@fastest
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision_is_served_where_it_has_no_hardware(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = SERVED._replace(dtype=dtype).inputs()
    monkeypatch.setattr(kernels, "_native_half_dtypes", lambda: frozenset({dtype}))
    assert not backend_of(inputs).startswith("compiled")
    monkeypatch.setattr(kernels, "_native_half_dtypes", frozenset)
    assert backend_of(inputs).startswith("compiled")


CHANGES: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "few queries": lambda inputs: [inputs[0][:, :, 1:], *inputs[1:]],
    "float64": lambda inputs: [each.double() for each in inputs],
    "a query with gaps": lambda inputs: [inputs[0].repeat_interleave(2, dim=-1)[..., ::2], *inputs[1:]],
    "a value by columns": lambda inputs: [*inputs[:2], inputs[2].transpose(2, 3).contiguous().transpose(2, 3)],
    "a key to be negated": lambda inputs: [inputs[0], torch._neg_view(inputs[1]), inputs[2]],
    "a value of another width": lambda inputs: [*inputs[:2], inputs[2][..., :8]],
    "a key for all heads": lambda inputs: [inputs[0], inputs[1][:, :1], inputs[2]],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "a mask": {"attention_mask": torch.ones(1, 1, SERVED.queries, SERVED.keys, dtype=torch.bool)},
    "causal": {"is_causal": True},
    "dropout": {"dropout": 0.5},
    "weights": {"output_attentions": True},
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_it_does_not_take_are_pytorchs(name: str) -> None:
    inputs = CHANGES[name](SERVED.inputs())
    assert backend_of(inputs) == "sdpa"


@pytest.mark.parametrize("name", OPTIONS)
def test_calls_that_it_does_not_take_are_pytorchs(name: str) -> None:
    assert not backend_of(SERVED.inputs(), **OPTIONS[name]).startswith("compiled")


def test_gradients_autocast_and_transforms_are_left_to_pytorch() -> None:
    inputs = SERVED.inputs()
    with torch.enable_grad():
        assert backend_of(inputs) == "sdpa"
    with torch.autocast("cpu"):
        assert backend_of(inputs) == "sdpa"
    backends = []
    torch.func.vmap(lambda x: (backends.append(backend_of(inputs)), x)[1])(torch.zeros(2))
    assert backends == ["sdpa"]
    with FakeTensorMode() as mode:
        assert backend_of([mode.from_tensor(each) for each in inputs]) == "sdpa"


@fastest
def test_a_switch_leaves_it_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu_library.SWITCH, "off")
    assert backend_of(SERVED.inputs()) == "sdpa"


@fastest
def test_the_encoder_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "FEWEST_QUERIES", 1)
    pair, features = make_pair(), mel_features(3)
    outputs = [model.model.encoder(features) for model in (pair.flash, pair.original)]
    assert_same(*outputs)
    assert pair.flash.attention_backend["encoder"].startswith("compiled")


@fastest
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_encoder_is_served_in_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "FEWEST_QUERIES", 1)
    monkeypatch.setattr(kernels, "_native_half_dtypes", frozenset)
    pair, features = make_pair(dtype), mel_features(3)
    flash, original = (model.model.encoder(features.to(dtype))[0] for model in (pair.flash, pair.original))
    assert_half_close(flash, original, make_pair().original.model.encoder(features)[0])
    assert pair.flash.attention_backend["encoder"].startswith("compiled")


# ---- The operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_the_operator_says_of_itself_holds(dtype: torch.dtype) -> None:
    arguments = (*Plan(dtype=dtype).inputs(), 0.3)
    torch.library.opcheck(cpu_attention._operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_its_operations_are_both_products() -> None:
    with FlopCounterMode(display=False) as counter:
        cpu_attention._operator(*Plan(batch=2, heads=3, queries=5, keys=7, head_dim=11).inputs(), 0.3)
    assert counter.get_total_flops() == 2 * 2 * 2 * 3 * 5 * 7 * 11
