"""What computes numbers and nothing more: a call, a tensor, a module. What does not is called, never bypassed."""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import ACT2FN
from transformers.models.whisper.modeling_whisper import WhisperPositionalEmbedding

_STOCK_LAYERS = frozenset({nn.Linear, nn.LayerNorm, nn.Embedding, WhisperPositionalEmbedding})
_PLAIN_TENSORS = frozenset({Tensor, nn.Parameter})


def is_plain_call(x: Tensor) -> bool:
    """Whether a call with `x` computes numbers and nothing more.

    It is not traced (then nothing may be asked about the machine, so this comes first), not transformed by
    `torch.func`, and not differentiated forwards, which goes on where gradients are off.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or type(x) not in _PLAIN_TENSORS
        or x.is_meta
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad.unpack_dual(x).tangent is not None
    )


def is_plain_inference(x: Tensor) -> bool:
    """Whether a call with `x` computes numbers on a CPU and nothing more, without gradients and outside autocast."""
    return (
        is_plain_call(x)
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain(*modules: nn.Module) -> bool:
    """Whether the modules can be computed from their parameters: stock layers, no hooks, weights that are mere numbers.

    Adapters, quantised layers, offloading and the hooks of a user make a layer more than its weights, and so do
    subclasses of tensors; what is not plain is called, never bypassed.
    """
    return all(
        type(module) in _STOCK_LAYERS
        and not has_hooks(module)
        and "weight" in module._parameters
        and all(parameter is None or _is_plain_parameter(parameter) for parameter in module._parameters.values())
        for module in modules
    )


def _is_plain_parameter(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and is_plain_tensor(parameter, anywhere=True)


def is_plain_tensor(tensor: Tensor, *, anywhere: bool = False) -> bool:
    """Whether a tensor is dense numbers, stored as PyTorch does, that are there: in the memory, or on any device."""
    return (
        type(tensor) in _PLAIN_TENSORS
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_meta
        and not tensor.is_neg()
        and (anywhere or (tensor.device.type == "cpu" and tensor.data_ptr() != 0))
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` runs more than its class's forward.

    The hooks that Transformers leaves behind after a call with `output_attentions` do not count: they only act while
    such a call runs.
    """
    if "forward" in module.__dict__ or module._forward_pre_hooks or module._backward_hooks:
        return True
    if _has_any_global_hook():
        return True
    return any(hook.__module__ != "transformers.utils.output_capturing" for hook in module._forward_hooks.values())


def is_exact_gelu(activation: nn.Module) -> bool:
    """Whether an activation is the one that `linear` can apply: Transformers' `"gelu"`, with the error function."""
    return type(activation) is type(ACT2FN["gelu"]) and not has_hooks(activation)
