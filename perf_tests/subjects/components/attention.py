"""One attention module, its projections included, at the longest lengths that the model knows."""

from typing import Any

import torch
from torch import Tensor

from perf_tests.matrix.floors import ATTENTION_LENGTHS

from .component import Component


class Attention(Component):
    """The first layer's self-attention in the encoder or (causal) in the decoder, or its cross-attention."""

    def prepare(self) -> None:
        """Take the module out of the model, whose rest is let go."""
        whole: Any = self.model
        causal = self.work.part == "decoder_self"
        if self.work.part == "encoder_self":
            module = whole.model.encoder.layers[0].self_attn
        else:
            layer = whole.model.decoder.layers[0]
            module = layer.self_attn if causal else layer.encoder_attn
        queries, keys = ATTENTION_LENGTHS[self.work.part]
        self.arguments = {"hidden_states": self.random_states(queries)}
        if self.work.part == "cross":
            self.arguments["key_value_states"] = self.random_states(keys, seed=1)
        if causal and self.implementation == "eager":
            # The others know from the module that it is causal; eager is told by a mask, as Transformers does.
            lowest = torch.finfo(self.place.dtype).min
            mask = torch.full((queries, keys), lowest, dtype=self.place.dtype, device=self.place.device)
            self.arguments["attention_mask"] = mask.triu(1)
        self.model = module
        self.features = self.arguments["hidden_states"]

    def attention_backend(self) -> dict[str, str]:
        module: Any = self.model
        kernel = getattr(module, "backend", None) or module.config._attn_implementation
        return {self.work.part: str(kernel)}

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The module's output, (batch, queries, width)."""
        states: Tensor = self.model(**self.arguments)[0]
        return states

    def outputs(self) -> tuple[Tensor, ...]:
        return (self.compute(),)
