"""On an NVIDIA GPU: the same comparisons in short, and what only a GPU has, graphs and stalls."""

import copy
import gc
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from whisper_flash_attention import encoder_pass

from .compare import assert_close, assert_half_close, assert_half_tokens_agree, assert_same, full_precision
from .tiny import EOS, NO_TIMESTAMPS, SOURCE_POSITIONS, START, Pair, decoder_tokens, make_pair, mel_features

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # Where it cannot be loaded, PyTorch's kernels serve, and are what is tested.
    pytest.mark.filterwarnings("ignore:xFormers:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PROMPT = [START, NO_TIMESTAMPS]
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def clean_device() -> Iterator[None]:
    """Float32 means float32 here; and memory goes back after each test."""
    with full_precision():
        yield
    gc.collect()
    torch.cuda.empty_cache()


def gpu_pair(dtype: torch.dtype = torch.float32, **options: Any) -> Pair:
    return Pair(*(model.cuda() for model in make_pair(dtype, **options)))


def features(batch: int = 2, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    return mel_features(batch, dtype=dtype, **options).cuda()


def padded_tokens() -> dict[str, torch.Tensor]:
    tokens = decoder_tokens(2, 9)
    tokens[1, :4] = EOS
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    return {"decoder_input_ids": tokens.cuda(), "decoder_attention_mask": mask.cuda()}


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_logits(dtype: torch.dtype, padded: bool) -> None:
    inputs = padded_tokens() if padded else {"decoder_input_ids": decoder_tokens(2, 9).cuda()}
    real = inputs.get("decoder_attention_mask", torch.ones(2, 9, device="cuda")).bool()
    original, flash = (model(features(dtype=dtype), **inputs).logits[real] for model in gpu_pair(dtype))
    if dtype == torch.float32:
        assert_close(flash, original, TOLERANCE)
    else:
        reference = gpu_pair().original(features(dtype=dtype).float(), **inputs).logits[real]
        assert_half_close(flash, original, reference)


@pytest.mark.parametrize("width", [64, 60, 4, 256, 512])
def test_head_sizes(width: int) -> None:
    """16, 15, 1, 64, 128: some that no memory-efficient kernel takes."""
    pair = gpu_pair(d_model=width)
    with torch.no_grad():
        original, flash = (model(features(), decoder_input_ids=decoder_tokens(2, 5).cuda()).logits for model in pair)
    assert_close(flash, original, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_encoder_in_lent_memory(dtype: torch.dtype) -> None:
    """As captured decoding runs it, where the keys and values of one audio will lie."""
    pair, inputs = gpu_pair(dtype), features(1, dtype)
    encoder = pair.flash.model.encoder
    lent = torch.full((8 * SOURCE_POSITIONS * 64,), torch.nan, dtype=dtype, device="cuda")
    assert encoder_pass.serves(encoder, inputs, lent)
    states, original = encoder_pass.run_encoder(encoder, inputs, lent), pair.original.model.encoder(inputs)[0]
    if dtype == torch.float32:
        assert_close(states, original, TOLERANCE)
    else:
        assert_half_close(states, original, gpu_pair().original.model.encoder(inputs.float())[0])


def test_gradients() -> None:
    results = []
    for model in gpu_pair():
        model.train()
        model(features(), labels=decoder_tokens(2, 9).cuda()).loss.backward()
        results.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert_same(results[1], results[0], 5e-3)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 30},
    "forced length": {"max_new_tokens": 40, "min_new_tokens": 40},
    "timestamps": {"max_new_tokens": 20, "return_timestamps": True},
    "beams": {"max_new_tokens": 12, "num_beams": 3},
    "sampling": {"max_new_tokens": 12, "do_sample": True, "temperature": 0.7},
    "scores": {"max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True},
    "no repeats": {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    "words": {"max_new_tokens": 12, "return_token_timestamps": True},
    "end tokens": {"max_new_tokens": 30, "eos_token_id": [EOS, 190]},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_generate(name: str) -> None:
    """Twice: the first call may capture a graph, the second replays it. Other rows, same shapes."""
    pair = gpu_pair()
    for seed in (0, 1):
        outputs = []
        for model in pair:
            torch.manual_seed(3)
            outputs.append(model.generate(features(4, seed=seed), **OPTIONS[name]))
        assert_same(outputs[1], outputs[0], TOLERANCE)


def test_shapes_by_turns() -> None:
    """A graph per shape: one must not be replayed for another."""
    pair = gpu_pair()
    for batch, length in ((1, 10), (3, 20), (1, 40), (2, 10), (3, 20), (1, 10)):
        original, flash = (model.generate(features(batch, seed=batch), max_new_tokens=length) for model in pair)
        assert_same(flash, original)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    pair, reference = gpu_pair(dtype), gpu_pair().original
    inputs = features(4, dtype)
    original, flash = (model.generate(inputs, max_new_tokens=30) for model in pair)
    assert_half_tokens_agree(flash, original, pair.original, reference, inputs, PROMPT)


def test_weight_changes_after_capture() -> None:
    """A graph holds addresses: in place, replaced, and loaded weights must all take effect."""
    pair = gpu_pair()
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    other = gpu_pair(seed=5).original.state_dict()

    def replace(model: torch.nn.Module) -> None:
        model.get_parameter(name).data = -model.get_parameter(name).data

    def scale(model: torch.nn.Module) -> None:
        model.get_parameter(name).data.mul_(-0.5)

    def load(model: torch.nn.Module) -> None:
        model.load_state_dict(other)

    for change in (lambda model: None, scale, replace, load):
        for model in pair:
            change(model)
        assert_same(*(model.generate(features(), max_new_tokens=20) for model in reversed(pair)))


def test_moved_to_the_cpu_and_back() -> None:
    pair = gpu_pair()
    expected = pair.original.generate(features(), max_new_tokens=10)
    for device in ("cuda", "cpu", "cuda"):
        pair.flash.to(device)
        tokens = pair.flash.generate(features().to(device), max_new_tokens=10)
        assert_same(tokens.cuda(), expected)


def test_copies_after_capture() -> None:
    pair = gpu_pair()
    expected = pair.original.generate(features(), max_new_tokens=10)
    pair.flash.generate(features(), max_new_tokens=10)
    assert_same(copy.deepcopy(pair.flash).generate(features(), max_new_tokens=10), expected)


def test_threads() -> None:
    pair = gpu_pair()
    expected = [pair.original.generate(features(2, seed=seed), max_new_tokens=20) for seed in range(3)]

    def work(seed: int) -> list[torch.Tensor]:
        return [pair.flash.generate(features(2, seed=seed), max_new_tokens=20) for _ in range(3)]

    with ThreadPoolExecutor(3) as pool:
        for outputs, tokens in zip(pool.map(work, range(3)), expected, strict=True):
            for output in outputs:
                assert_same(output, tokens)


def test_on_another_stream() -> None:
    pair = gpu_pair()
    expected = pair.original.generate(features(), max_new_tokens=20)
    pair.flash.generate(features(), max_new_tokens=20)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        tokens = pair.flash.generate(features(), max_new_tokens=20)
    stream.synchronize()
    assert_same(tokens, expected)


@pytest.mark.parametrize("options", [{}, {"return_timestamps": True}, {"num_beams": 3}], ids=str)
def test_padded_prompts(options: dict[str, Any]) -> None:
    """Twice: the graph that hides one padding hides another."""
    pair = gpu_pair()
    options = options | {"max_new_tokens": 20, "force_unique_generate_call": True}
    prompts = padded_tokens()
    for inputs in (prompts, {name: value.flip(0) for name, value in prompts.items()}):
        original, flash = (model.generate(features(), **inputs, **options) for model in pair)
        assert_same(flash, original)


def host_syncs(model: torch.nn.Module, length: int, **options: Any) -> int:
    """How often one call makes the host wait for the device."""
    options |= {"max_new_tokens": length, "min_new_tokens": length, "force_unique_generate_call": True}
    inputs = features(dtype=model.dtype)
    model.generate(inputs, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # itself warns that it is a prototype
        try:
            model.generate(inputs, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("options", [{}, {"return_timestamps": True}], ids=str)
def test_host_does_not_wait_for_each_token(options: dict[str, Any]) -> None:
    """At most once in ten tokens."""
    flash = gpu_pair(torch.float16).flash
    assert (host_syncs(flash, 55, **options) - host_syncs(flash, 15, **options)) / 40 <= 0.1


def test_repeated_calls_keep_memory() -> None:
    """Of the allocator: what one call needed, a hundred need."""
    flash = gpu_pair().flash
    for _ in range(2):
        flash.generate(features(4), max_new_tokens=30)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        flash.generate(features(4), max_new_tokens=30)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("layers", [2, 6])
def test_a_call_takes_no_more_memory_than_the_originals(layers: int) -> None:
    """Of one window of audio, at tiny.en's width, in the second call, which finds the buffers of the first."""
    attention = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 6)
    sizes = {"d_model": 384, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "max_source_positions": 1500}
    pair = gpu_pair(torch.float16, encoder_layers=4, decoder_layers=layers, **attention, **sizes)
    inputs, peaks = features(1, torch.float16, frames=3000), []
    for model in pair:
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        before = torch.cuda.memory_allocated()
        model.generate(inputs, min_new_tokens=25, max_new_tokens=25)
        torch.cuda.reset_peak_memory_stats()
        model.generate(inputs, min_new_tokens=25, max_new_tokens=25)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    original, flash = peaks
    assert flash <= original


def test_memory_is_freed_with_the_model() -> None:
    """Graphs and buffers go when the model goes; what stays are the workspaces of the libraries, made once."""
    gpu_pair().flash.generate(features(4), max_new_tokens=10)
    gc.collect()
    before = torch.cuda.memory_allocated()
    pair = gpu_pair()
    for length in (10, 30):
        pair.flash.generate(features(4), max_new_tokens=length)
    del pair
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 2**20


def test_backend_is_recorded() -> None:
    flash = gpu_pair(torch.float16).flash
    flash.generate(features(dtype=torch.float16), max_new_tokens=10)
    assert {"encoder", "decode"} <= set(flash.attention_backend)
    assert flash.attention_backend["step"] == "graph"


def test_matrix_products_have_one_workspace() -> None:
    """cuBLAS keeps one for each stream, 32 MiB on a Hopper: encoder, prompt and graphs share theirs."""
    flash = gpu_pair(torch.float16).flash
    inputs = features(4, torch.float16)
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    torch.ones(64, 64, device="cuda", dtype=torch.float16) @ torch.ones(64, 64, device="cuda", dtype=torch.float16)
    workspace = torch.cuda.memory_allocated() - before
    torch._C._cuda_clearCublasWorkspaces()
    for length in (5, 30):
        flash.generate(inputs, max_new_tokens=length)
    torch.cuda.synchronize()
    (session,) = flash._sessions._idle  # type: ignore[union-attr]
    assert torch.cuda.memory_allocated() - before - session.nbytes < 1.5 * workspace + 2**21
