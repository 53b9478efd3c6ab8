"""Transformers' modules of the encoder, where they compute something in another way."""

from typing import Any

from torch import Tensor, nn
from transformers.models.whisper import modeling_whisper

from . import kernels
from .flash_attention import WhisperFlashAttention
from .plain import has_hooks, is_exact_gelu, is_plain


class WhisperEncoderLayer(modeling_whisper.WhisperEncoderLayer):  # type: ignore[misc]
    """An encoder layer whose feed-forward part, at inference, is two products: the GELU rides on the first.

    It has the original's name, by which device maps and FSDP's policies find the layers that must stay whole.
    """

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:  # noqa: D102
        linear = kernels.linear_for(hidden_states)
        fuses = (
            linear is not kernels.torch_linear
            and not self.training
            and is_exact_gelu(self.activation_fn)
            and type(self.self_attn) is WhisperFlashAttention
            and not has_hooks(self.self_attn)
            and is_plain(self.self_attn.out_proj, self.fc1, self.fc2)
        )
        if not fuses:
            return super().forward(hidden_states, attention_mask, **kwargs)  # type: ignore[no-any-return]
        # Written so that nothing outlives its use: the activations of this layer set the peak of a small batch.
        attended, _ = self.self_attn(
            hidden_states=self.self_attn_layer_norm(hidden_states), attention_mask=attention_mask, **kwargs
        )
        hidden_states = attended.add_(hidden_states)
        expanded = linear(self.final_layer_norm(hidden_states), self.fc1.weight, self.fc1.bias, gelu=True)
        return linear(expanded, self.fc2.weight, self.fc2.bias, residual=hidden_states)


class Conv1d(nn.Conv1d):
    """A convolution of the encoder's, computed in float32 where half precision has no hardware."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        is_whispers = self.padding_mode == "zeros" and self.dilation == (1,) and self.groups == 1
        if not (
            is_whispers
            and isinstance(self.padding, tuple)
            and kernels.upcasts(input)
            and kernels.are_of_one_dtype(input, self.weight, self.bias)
        ):
            return super().forward(input)
        return kernels.upcast_convolution(input, self.weight, self.bias, self.stride[0], self.padding[0])
