"""Taking over a transformers model: its linear layers become LoRALinear, its input embedding LoRAEmbedding, its blocks
fused where that is known to be the same, its attention ours."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.base_model import BaseModel
from adapters.errors import Invalid
from serving.engine.attention import ATTENTION, LayerProbe
from serving.engine.embedding import LoRAEmbedding
from serving.engine.fit import Layers
from serving.engine.fused import FusedLayer, FusedStack, can_fuse
from serving.engine.kernels import Kernels
from serving.engine.kv_cache import LayerShape
from serving.engine.lora import LoRALinear, StepAdapters


def install_lora(
    base: BaseModel,
    step: StepAdapters,
    kernels: Kernels,
    *,
    fuse: bool = True,
    bits: int | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Layers:
    """Replace every linear layer and the input embedding of `base.model`; returns, for each by name, what computes it
    now.

    `bits` 8 or 4 quantises the linear layers on the way; the output layer keeps at least 8, because every choice of a
    token goes through its roundings. `weights` is the model's `state_dict` before, and is kept up: joined layers' are
    parts of the joined weight then, and those that are packed are taken out."""
    model: nn.Module = base.model
    remaining = list(base.linear_shapes)  # by name, before anything is replaced
    installed: dict[str, LoRALinear | LoRAEmbedding] = {}
    embedding, output = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    head = names.get(output)
    tied = output is not None and output.weight.data_ptr() == embedding.weight.data_ptr()

    def join(names: Sequence[str]) -> LoRALinear:
        linears = [model.get_submodule(name) for name in names]
        widths = {name: base.linear_shapes[name][1] for name in names}
        kept = 8 if bits == 4 and head in names else bits
        joined = kernels.join_linears(linears, kept)  # type: ignore[arg-type]
        layer = LoRALinear(joined, widths, step, kernels, is_head=head in names)
        installed.update(dict.fromkeys(names, layer))
        if weights is not None:
            _follow(weights, layer, joined)
        return layer

    for path, module in list(model.named_modules()):
        if fuse and can_fuse(module):
            _replace(model, path, FusedLayer(module, path, join, kernels))
    for name in remaining:
        if name not in installed:
            _replace(model, name, join([name]))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.ModuleList) and all(isinstance(layer, FusedLayer) for layer in module):
            _replace(model, path, nn.ModuleList([FusedStack(list(module))]))  # type: ignore[arg-type]
    installed[names[embedding]] = LoRAEmbedding(embedding, step, head=head if tied else None)
    _replace(model, names[embedding], installed[names[embedding]])
    return installed


def probe_layers(base: BaseModel) -> list[LayerShape]:
    """Switch the model's attention to ours and run one token, to learn what each layer keeps. Invalid when not every
    layer goes through it: that one would attend with its own code, across sequences."""
    model = base.model
    layers = model.config.get_text_config().num_hidden_layers
    probe = LayerProbe({})
    zero = torch.zeros(1, 1, dtype=torch.long, device=base.device)
    try:
        model.set_attn_implementation(ATTENTION)
        with torch.inference_mode():
            model(input_ids=zero, position_ids=zero, use_cache=False, step_input=probe)
    except (TypeError, ValueError) as error:
        kind = model.config.model_type
        raise Invalid(f"base '{base.name}' ({kind}) cannot run in this engine: {error}", param="base") from error
    if set(probe.shapes) != set(range(layers)):
        raise Invalid(
            f"base '{base.name}' ({model.config.model_type}) has {layers} layers; only {len(probe.shapes)} "
            "use attention that the engine can replace; choose a model of plain attention layers",
            param="base",
        )
    return [probe.shapes[layer] for layer in range(layers)]


def _follow(weights: dict[str, Tensor], layer: LoRALinear, joined: nn.Module) -> None:
    """Let the weights of the layer's members be those it computes with."""
    for name, columns in layer.columns.items():
        if not isinstance(joined, nn.Linear):
            for key in [key for key in weights if key.startswith(f"{name}.")]:
                del weights[key]
        elif len(layer.columns) > 1:
            weights[f"{name}.weight"] = joined.weight.detach()[columns]
            if f"{name}.bias" in weights:
                weights[f"{name}.bias"] = joined.bias.detach()[columns]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
