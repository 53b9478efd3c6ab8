"""Whisper's attention by exact, memory-efficient kernels.

`attention_forward` is the function behind Transformers' public `AttentionInterface`, under the name
`whisper_memory_efficient`; `WhisperFlashAttention` is the module that calls it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, EncoderDecoderCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.models.whisper.modeling_whisper import WhisperAttention

from . import cpu_attention, cpu_library, kernels, xformers_backend
from .plain import is_plain, is_plain_call

ATTENTION_NAME = "whisper_memory_efficient"
"""Not "flash": Transformers takes every name with that word for a FlashAttention package and looks for it."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Exact attention, in the signature of Transformers' `AttentionInterface`.

    Args:
        module: The calling module; its `is_causal` counts where the argument is None. The name of the kernel that
            served is left in its `backend`.
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, heads, keys, head_dim)`; without a mask, all of them written.
        value: `(batch, heads, keys, head_dim)`.
        attention_mask: True where a query may look, or numbers to add to the scores, broadcastable to
            `(batch, heads, queries, keys)`; None for causal (where the module is) or full attention.
        dropout: Probability of dropping a weight.
        scaling: Factor of the scores; `head_dim ** -0.5` where None.
        is_causal: Whether query i of the last ones sees only the keys up to its own; ignored beside a mask.
        output_attentions: Also return the weights, which takes the eager path for this call.
        kwargs: Ignored.

    Returns:
        `(batch, queries, heads, head_dim)`, and the weights `(batch, heads, queries, keys)` or None.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    causal = is_causal and attention_mask is None and query.shape[2] > 1
    weights = None
    if output_attentions:
        out, weights = _eager(query, key, value, attention_mask, causal, dropout, scale)
        backend = "eager"
    else:
        out, backend = _fused(query, key, value, attention_mask, causal, dropout, scale)
    module.backend = backend  # type: ignore[assignment]
    return out.transpose(1, 2), weights


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scale: float,
) -> tuple[Tensor, str]:
    """Attention by the kernel that the tables of `kernels.py` name for the call."""
    if mask is None and is_plain_call(query):
        served = xformers_backend.attend(query, key, value, causal=causal, dropout=dropout, scale=scale)
        if served is not None:
            return served, "xformers"
        if not causal and dropout == 0.0:
            if (served := cpu_attention.attend(query, key, value, scale)) is not None:
                return served, f"compiled for {cpu_library.LEVELS[cpu_library.level()]}"
            if kernels.prefers_chunked_attention(query, key):
                return kernels.chunked_attention(query, key, value, scale), "matmul"
    if causal and key.shape[2] > query.shape[2]:
        # PyTorch's is_causal is aligned top-left: right for equal lengths only.
        mask, causal = _causal_mask(query, key), False
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )
    return out, "sdpa"


def _eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention with its weights, as Transformers' eager implementation computes them."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if causal:
        mask = _causal_mask(query, key)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    weights = F.dropout(torch.softmax(scores, dim=-1), p=dropout)
    return torch.matmul(weights, value), weights


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """A mask `(queries, keys)`, True where a query of the last ones may look: aligned bottom-right."""
    queries, keys = query.shape[2], key.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)


AttentionInterface.register(ATTENTION_NAME, attention_forward)
# Without a mask function of the same name a padded decoder_attention_mask would be dropped without a word.
AttentionMaskInterface.register(ATTENTION_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


class WhisperFlashAttention(WhisperAttention):  # type: ignore[misc]
    """Whisper's multi-head attention by exact, memory-efficient kernels.

    Same parameters, call and results as Transformers' `WhisperAttention`. Where the configuration asks for another
    implementation than the default (`eager`, `flash_attention_2`, …) that one runs.

    Attributes:
        backend: The kernel that served the last call: `xformers`, `compiled for …` (the CPU's level), `sdpa`, `matmul`
            or `eager`; None before it.
    """

    backend: str | None = None

    def forward(  # noqa: D102 (the original's contract)
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        implementation = self.config._attn_implementation
        if implementation not in {None, "sdpa", ATTENTION_NAME}:
            self.backend = implementation
            return super().forward(  # type: ignore[no-any-return]
                hidden_states,
                key_value_states=key_value_states,
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                output_attentions=output_attentions,
                **kwargs,
            )

        batch, queries, _ = hidden_states.shape
        query = self._heads(self._project(self.q_proj, hidden_states), batch)
        key, value = self._keys_and_values(hidden_states, key_value_states, past_key_values, attention_mask)
        out, weights = attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            # A cross-attention has every encoder frame to look at, whatever the module says.
            is_causal=self.is_causal and key_value_states is None,
            output_attentions=output_attentions,
        )
        return self._project(self.out_proj, out.reshape(batch, queries, self.embed_dim)), weights

    def _keys_and_values(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None,
        past_key_values: Cache | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `(batch, heads, written, head_dim)`, from the cache or projected and put there."""
        is_cross = key_value_states is not None
        cache, is_updated = past_key_values, False
        if isinstance(past_key_values, EncoderDecoderCache):
            if is_cross:
                is_updated = bool(past_key_values.is_updated.get(self.layer_idx))
                past_key_values.is_updated[self.layer_idx] = True
                cache = past_key_values.cross_attention_cache
            else:
                cache = past_key_values.self_attention_cache
        if cache is not None and is_updated:
            layer = cache.layers[self.layer_idx]
            return layer.keys, layer.values
        states = hidden_states if key_value_states is None else key_value_states
        # The queries' batch, as in the original: encoder states of another batch join the sequence.
        batch = hidden_states.shape[0]
        key = self._heads(self._project(self.k_proj, states), batch)
        value = self._heads(self._project(self.v_proj, states), batch)
        if cache is None:
            return key, value
        key, value = cache.update(key, value, self.layer_idx)
        if attention_mask is None and not is_cross and getattr(cache, "is_compileable", False):
            # A static cache hands back its whole buffer. A masked call brings a mask as wide as that; an unmasked
            # one (its prefill) must not see what was never written.
            written = int(cache.get_seq_length(self.layer_idx))
            return key[:, :, :written], value[:, :, :written]
        return key, value

    def _heads(self, states: Tensor, batch: int) -> Tensor:
        """Split `(batch, length, embed_dim)` into `(batch, heads, length, head_dim)`, without a copy."""
        return states.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

    def _project(self, layer: nn.Module, states: Tensor) -> Tensor:
        """Apply a projection, by the faster product where the layer is nothing but its weights."""
        linear = kernels.linear_for(states)
        if linear is not kernels.torch_linear and isinstance(layer, nn.Linear) and is_plain(layer):
            return linear(states, layer.weight, layer.bias)
        return layer(states)  # type: ignore[no-any-return]
