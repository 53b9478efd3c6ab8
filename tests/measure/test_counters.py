from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from perf_tests.matrix.cases import SETTINGS
from perf_tests.measure.counters import OperatorCounter, count_cuda_calls, count_launches, count_round
from perf_tests.measure.flops import convolution_flops
from perf_tests.subjects.subject import Stage


def count(function, *args) -> tuple[int, int]:
    with torch.no_grad(), OperatorCounter() as counter:
        function(*args)
    return counter.operators, counter.flops


def test_operators_are_counted() -> None:
    x = torch.ones(3)
    assert count(lambda: (x + x) * x) == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    a, b = torch.ones(3, 5, dtype=dtype), torch.ones(5, 7, dtype=dtype)
    bias = torch.ones(7, dtype=dtype)
    assert count(torch.mm, a, b)[1] == 2 * 3 * 5 * 7
    assert count(torch.addmm, bias, a, b)[1] == 2 * 3 * 5 * 7
    assert count(functional.linear, a, b.T.contiguous(), bias)[1] == 2 * 3 * 5 * 7
    assert count(torch.mv, a, torch.ones(5, dtype=dtype))[1] == 2 * 3 * 5
    assert count(torch.addmv, torch.ones(3, dtype=dtype), a, torch.ones(5, dtype=dtype))[1] == 2 * 3 * 5
    assert count(torch.bmm, a[None], b[None])[1] == 2 * 3 * 5 * 7
    assert count(torch.addbmm, torch.ones(3, 7, dtype=dtype), a[None], b[None])[1] == 2 * 3 * 5 * 7
    out = torch.empty(3, 7, dtype=dtype)
    assert count(lambda: torch.mm(a, b, out=out))[1] == 2 * 3 * 5 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpus_fused_attention_counts_as_its_two_products(dtype: torch.dtype) -> None:
    query, key = torch.ones(2, 4, 10, 16, dtype=dtype), torch.ones(2, 4, 30, 16, dtype=dtype)
    _, flops = count(functional.scaled_dot_product_attention, query, key, key)
    assert flops == 2 * (2 * 2 * 4 * 10 * 30 * 16)


def test_convolutions_count_the_same_whoever_computes_them() -> None:
    x, weight = torch.ones(2, 8, 30), torch.ones(16, 8, 3)
    expected = 2 * 2 * 15 * 16 * 8 * 3
    assert count(lambda: functional.conv1d(x, weight, stride=2, padding=1))[1] == expected
    assert convolution_flops(weight.shape, torch.Size((2, 16, 15))) == expected


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednns_operators_count() -> None:
    x, weight = torch.ones(3, 5), torch.ones(7, 5)
    _, flops = count(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    assert flops == 2 * 3 * 5 * 7
    sum_with = torch.ones(3, 7)
    _, flops = count(lambda: torch.ops.mkldnn._linear_pointwise.binary(x, sum_with, weight, None, "add"))
    assert flops == 2 * 3 * 5 * 7
    opaque = x.to_mkldnn(), weight.to_mkldnn(), torch.ones(7).to_mkldnn()
    assert count(torch.ops.aten.mkldnn_linear, *opaque)[1] == 2 * 3 * 5 * 7
    image, kernel = torch.ones(1, 8, 6, 1), torch.ones(4, 8, 1, 1)
    _, flops = count(
        lambda: torch.ops.mkldnn._convolution_pointwise(image, kernel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
    )
    assert flops == 2 * 6 * 4 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_does_the_work_of_the_original(dtype: torch.dtype, make_stage: Callable[[torch.dtype], Stage]) -> None:
    """No product of flash may escape the count: it saves the prompt's logits, and may pad its cache."""
    stage = make_stage(dtype)
    original, flash = (stage.build(name) for name in ("original", "flash"))
    for subject in (original, flash):
        subject.run_round()
    assert count_round(flash).flops == pytest.approx(count_round(original).flops, rel=0.05)


@pytest.mark.parametrize("implementation", ["original", "flash"])
def test_a_round_counts_the_same_every_time(implementation: str, stage: Stage) -> None:
    subject = stage.build(implementation)
    subject.run_round()
    first = count_round(subject)
    assert count_round(subject) == first
    assert first.aten_ops > 0
    assert (first.kernel_launches, first.host_syncs) == (None, None)


def test_operators_grow_in_proportion_to_the_tokens(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = stage.build("original")
    counts = []
    for tokens in (4, 6, 8):
        subject.arguments = stage.vocabulary.generate_arguments(tokens)
        counts.append(count_round(subject).aten_ops)
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_the_originals_operations_are_the_models(stage: Stage) -> None:
    """Encoder, cross keys and values, and the decoder's products, by hand for the mini cell."""
    subject = stage.build("original")
    width, ffn, positions, vocabulary = 32, 64, 1500, 51864
    batch, tokens = SETTINGS["brief"][:2]
    prompt = len(stage.vocabulary.prompt)
    convolutions = 2 * 3000 * width * 80 * 3 + 2 * positions * width * width * 3
    block = 2 * (4 * width * width + 2 * width * ffn)
    encoder = convolutions + positions * block + 4 * positions**2 * width
    cross = 2 * 2 * positions * 2 * width * width
    decoder = 0
    length = 0
    for queries in (prompt, *[1] * (tokens - 1)):
        length += queries
        layer = queries * (block + 2 * 2 * width * width) + 4 * queries * (length + positions) * width
        decoder += 2 * layer + 2 * queries * width * vocabulary
    counted = count_round(subject).flops
    # Transformers projects the logits of the last prompt token alone, or of all: it has done both.
    spared = 2 * (prompt - 1) * width * vocabulary
    total = encoder + cross + decoder
    assert counted in (batch * total, batch * (total - spared))


def test_cuda_calls_by_name() -> None:
    names = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cudaGraphLaunch", "aten::mm"]
    waits = ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync", "cudaEventRecord"]
    assert count_cuda_calls([*names, *waits]) == (4, 2)


LAUNCH, WAIT = "cudaLaunchKernel", "cudaStreamSynchronize"


def calls_of(tokens: int, bend: int = 10_000) -> list[str]:
    """A round's calls: an encoder's, those of each token, and a wait once in 16; more launches from ``bend`` on."""
    launches = 100 + 3 * tokens + max(0, tokens - bend)
    return [LAUNCH] * launches + [WAIT] * (1 + (tokens - 1) // 16)


@pytest.mark.parametrize("tokens", [1, 25, 64, 65, 250, 256, 257])
def test_launches_of_a_long_round_are_told_by_short_ones(tokens: int) -> None:
    asked: list[int | None] = []

    def profiled(length: int | None) -> list[str]:
        asked.append(length)
        return calls_of(length or tokens)

    assert count_launches(profiled, tokens) == count_cuda_calls(calls_of(tokens))
    assert asked == [None] if tokens <= 64 else sum(length or 1000 for length in asked) < 150


def test_what_is_on_no_line_is_counted_whole() -> None:
    asked: list[int | None] = []

    def profiled(length: int | None) -> list[str]:
        asked.append(length)
        return calls_of(length or 256, bend=40)

    assert count_launches(profiled, 256) == count_cuda_calls(calls_of(256, bend=40))
    assert asked[-1] is None


def test_what_generates_no_forced_tokens_is_counted_whole() -> None:
    assert count_launches(lambda length: [LAUNCH, WAIT, WAIT] if length is None else [], None) == (1, 2)
