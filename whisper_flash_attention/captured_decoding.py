"""Greedy decoding as one CUDA graph per step.

Nearly every kernel of a decoding step is shorter than its launch, so the step is captured once and replayed: from
the embedding to the chosen token, its place among the ids, and the flags of the finished sequences. Positions and
flags stay on the device; the host looks at the flags once in `CHECK_EVERY` tokens.

The graph holds addresses, so everything that a step touches lives in a `GreedySession`, which outlives the call and
serves the next one of the same shape. `GreedySession.step` is plain code: without a GPU it runs as it is.

All of it, encoder and prompt too, runs on one stream per device (`on_decoding_stream`), one call at a time. A graph
also holds the address of cuBLAS's workspace, which belongs to a thread and a stream (32 MiB on a Hopper, allocated once
and kept): on one stream two graphs never write to it at once, and no second one is needed for what is not captured.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .decode_step import run_decoder
from .decoder import Padding
from .kv_cache import CacheShape, CrossBuffer, WhisperKVCache
from .logits import Suppression
from .timestamps import TimestampRules, TimestampState
from .weights import DecoderWeights

CHECK_EVERY = 16
"""Tokens between two looks at the flags of the finished sequences: a look stalls the device for about one step, and
what is decoded past the end is cut off."""

SPAN_STEP = 64
"""Cached positions are attended to in multiples of this; each multiple is a graph of its own."""

CAPTURED_DEVICE = "cuda"
"""The type of device whose work is captured."""

_capture_failed = threading.Event()


def captures_on(device: torch.device) -> bool:
    """Whether steps on a device can be captured: on CUDA, until a capture has failed in this process.

    PyTorch (2.11) leaves its allocator as it was during the failed one, and the next one trips over that.
    """
    return device.type == CAPTURED_DEVICE and not _capture_failed.is_set()


@contextmanager
def on_decoding_stream(device: torch.device) -> Iterator[None]:
    """Run the block alone on the stream of captured decoding, behind what the current stream was given until now.

    The current stream waits for the block's work; the host does not. What is allocated in the block belongs to that
    stream: what leaves it goes through `hand_over`.

    Args:
        device: A CUDA device, with its index; on any other one nothing is done.
    """
    if device.type != CAPTURED_DEVICE:
        yield
        return
    stream, lock = _decoding_stream(device)
    # A thread that gave the stream work while another one captures would have it recorded.
    with lock:
        caller = torch.cuda.current_stream(device)
        stream.wait_stream(caller)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            caller.wait_stream(stream)


def _decoding_stream(device: torch.device) -> tuple[torch.cuda.Stream, threading.RLock]:
    with _streams_lock:
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device), threading.RLock()
        return _streams[device]


_streams: dict[torch.device, tuple[torch.cuda.Stream, threading.RLock]] = {}
_streams_lock = threading.Lock()


def hand_over(*tensors: Tensor | None) -> None:
    """Keep tensors that were allocated on another stream from reuse until the current one is done with them."""
    for tensor in tensors:
        if tensor is not None and tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


class GreedySession:
    """Static buffers of greedy decoding for one shape, and the graphs captured over them.

    Args:
        weights: The decoder.
        shape: Dimensions of the cache.
        eos: `(n,)`, ids that end a sequence, or None.
        pad: `()`, the id that follows the end.
        timestamps: The rules about timestamps, or None.
        stores_cross: Whether cross keys and values are stored; else the step attends to `states`.
        hides: Whether prompts may be padded.
        captures: Whether steps are captured and replayed, which needs a CUDA device, and `on_decoding_stream` around
            every use of the session.

    Attributes:
        weights: The decoder. Another one of the same places may be put there.
        places: Where its numbers lie, which graphs hold.
        captures: As above; False from the first step on behind a capture that failed, whosever.
        cache: Keys and values, filled by the caller up to the prompt.
        states: `(batch, frames, d)`, the encoder states, filled by the caller; None where cross keys and values are
            stored.
        ids: `(batch, capacity + 1)`, the tokens.
    """

    # The next call may be made outside of the inference mode that this one is made in.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        weights: DecoderWeights,
        shape: CacheShape,
        eos: Tensor | None,
        pad: Tensor | None,
        timestamps: TimestampRules | None = None,
        *,
        stores_cross: bool,
        hides: bool = False,
        captures: bool,
    ) -> None:
        table = weights.token_embedding
        device, dtype = table.device, table.dtype
        self.weights, self.places, self.captures = weights, weights.places(), captures
        cross_buffer = CrossBuffer.empty(shape, dtype, device) if stores_cross else None
        self.cache = WhisperKVCache(shape, dtype, device, cross_buffer)
        self.states = (
            None if stores_cross else torch.empty(shape.batch, shape.frames, table.shape[1], dtype=dtype, device=device)
        )
        self.ids = torch.zeros(shape.batch, shape.capacity + 1, dtype=torch.long, device=device)
        self.eos, self.pad, self.timestamps = eos, pad, timestamps
        self._padding = None
        if hides:
            hidden = torch.zeros(shape.batch, 1, 1, shape.capacity, dtype=dtype, device=device)
            self._padding = Padding(hidden, torch.zeros(shape.batch, dtype=torch.long, device=device))
        self._slots = torch.arange(shape.capacity, device=device)
        self._tokens = torch.zeros(shape.batch, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._unfinished = torch.ones(shape.batch, dtype=torch.bool, device=device)
        self._forbidden = torch.zeros(weights.vocabulary.weight.shape[0], dtype=torch.bool, device=device)
        self._stamps = TimestampState(
            torch.zeros_like(self._unfinished), torch.zeros_like(self._unfinished), torch.zeros_like(self._tokens)
        )
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def serves(
        self,
        shape: CacheShape,
        eos: Tensor | None,
        pad: Tensor | None,
        timestamps: TimestampRules | None,
        *,
        stores_cross: bool,
        hides: bool,
    ) -> bool:
        """Whether a call with these, to weights of the same places, can use the session: same shape, end and rules."""
        return (
            shape == self.cache.shape
            and stores_cross == (self.states is None)
            and hides == (self._padding is not None)
            and _same_tokens(eos, self.eos)
            and _same_tokens(pad, self.pad)
            and _key(timestamps) == _key(self.timestamps)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the large buffers."""
        buffers = (self.cache.self_buffer, self.cache.cross_buffer, self.states)
        return sum(buffer.nbytes for buffer in buffers if buffer is not None)

    def hold_states(self, states: Tensor) -> Tensor:
        """Copy encoder states to where the graphs read them."""
        assert self.states is not None
        return self.states.copy_(states)

    def start(
        self, tokens: Tensor, length: int, stamps: TimestampState | None = None, padding: Padding | None = None
    ) -> None:
        """Take the first chosen tokens.

        Args:
            tokens: `(batch,)`, the last of the sequences that `ids` now holds.
            length: Tokens of these sequences, prompt included.
            stamps: Their state, where there are rules about timestamps.
            padding: Of their prompts, where some are padded.
        """
        # A step multiplies what it masks by zero, which is no help against NaNs, of memory never written or left by
        # another call.
        self.cache.self_buffer[..., length - 1 :, :].zero_()
        if self._padding is not None and padding is not None:
            self._padding.hidden.copy_(padding.hidden)
            self._padding.shift.copy_(padding.shift)
        if stamps is not None:
            self._hold_stamps(stamps)
        self._tokens.copy_(tokens)
        self._position.fill_(length - 1)
        self._unfinished.fill_(True)
        if self.eos is not None:
            self._unfinished.copy_((tokens[:, None] != self.eos).all(dim=1))

    def run(self, length: int, max_length: int, suppression: Suppression | None) -> int:
        """Decode until every sequence has ended or `max_length`, into `ids`.

        Args:
            length: Tokens that `ids` holds, prompt and first token included.
            max_length: Tokens at which decoding ends.
            suppression: What may not be chosen.

        Returns:
            The number of tokens that `ids` holds for the longest sequence.
        """
        start, mask = length, None
        if suppression is None:
            self._forbidden.zero_()
        while length < max_length:
            if self.eos is not None and (length - start) % CHECK_EVERY == 0 and not bool(self._unfinished.any()):
                break
            if suppression is not None and suppression.mask(length) is not mask:
                mask = suppression.mask(length)
                self._forbidden.copy_(mask)
            self._advance(min(-(-length // SPAN_STEP) * SPAN_STEP, self.cache.shape.capacity))
            length += 1
        return self._trimmed(start, length)

    def step(self, span: int) -> None:
        """Decode one token per sequence, attending to `span` cached positions of which the later ones are masked."""
        unwritten = self._slots[:span] > self._position
        mask = torch.zeros(1, span, dtype=self.weights.token_embedding.dtype, device=unwritten.device)
        places = None
        if self._padding is not None:
            mask, places = mask + self._padding.hidden[..., :span], self._padding.shift + self._position
        mask.masked_fill_(unwritten, torch.finfo(mask.dtype).min)
        logits = run_decoder(self.weights, self.cache, self._tokens, self._position, span, mask, self.states, places)
        scores = logits.masked_fill_(self._forbidden, -torch.inf)
        if self.timestamps is not None:
            scores = self.timestamps.apply(scores.float(), self._stamps)
        tokens = scores.argmax(dim=-1)
        if self.eos is not None:
            if self.pad is not None:
                tokens = torch.where(self._unfinished, tokens, self.pad)
            self._unfinished.logical_and_((tokens[:, None] != self.eos).all(dim=1))
        self._position.add_(1)
        self.ids.index_copy_(1, self._position, tokens[:, None])
        self._tokens.copy_(tokens)
        if self.timestamps is not None:
            self._hold_stamps(self.timestamps.following(self._stamps, tokens))

    def _hold_stamps(self, stamps: TimestampState) -> None:
        last, penultimate, latest = stamps
        self._stamps.penultimate.copy_(penultimate)  # may be the old `last`, so before it
        self._stamps.last.copy_(last)
        self._stamps.latest.copy_(latest)

    def _advance(self, span: int) -> None:
        self.captures = self.captures and captures_on(self.ids.device)
        if self.captures and span not in self._graphs:
            self._capture(span)
        if self.captures:
            self._graphs[span].replay()
        else:
            self.step(span)

    def _capture(self, span: int) -> None:
        """Record `step` as a graph, or nothing from now on. State is put back after the warm-up that capture needs."""
        state = (self._tokens, self._position, self._unfinished, self.ids, *self._stamps)
        saved = [tensor.clone() for tensor in state]
        self.step(span)
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        # Not "global": other threads go on with their own work, and allocate for it.
        stream = torch.cuda.current_stream(self.ids.device)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.step(span)
        except RuntimeError as error:  # a driver, or a kernel of it, that does not take part in a graph
            _capture_failed.set()
            self.captures = False
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            warnings.warn(
                "CUDA graphs are off for the rest of this process, since a decoding step could not be captured "
                f"({reason}); decoding goes on step by step.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self._graphs[span] = graph

    def _trimmed(self, start: int, length: int) -> int:
        """The length at which the last sequence ended, since decoding runs on between two looks at the flags."""
        if self.eos is None:
            return length
        ended = torch.isin(self.ids[:, start - 1 : length], self.eos).cumsum(dim=1).bool().all(dim=0)
        if not bool(ended.any()):
            return length
        return start + int(ended.int().argmax())


def _key(timestamps: TimestampRules | None) -> object:
    return None if timestamps is None else timestamps.key


def _same_tokens(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
