"""Everything that changes what an encoder says shows; what does not change it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tiny_models import tiny_image_processor, tiny_tokenizer, tiny_vl_encoder
from zimage_vl.encoder_identity import reader_owners, reader_state, weights_digest


def make_reader() -> tuple[Any, Any, Any]:
    return tiny_vl_encoder(), tiny_image_processor(), tiny_tokenizer()


def weight_of(encoder: Any) -> Any:
    return encoder.model.language_model.layers[1].mlp.up_proj.weight


def write_in_place(encoder: Any) -> None:
    with torch.no_grad():
        weight_of(encoder)[3, 5] += 1  # one value, in no corner


def load_state(encoder: Any) -> None:
    encoder.load_state_dict(encoder.state_dict())


def replace_weight(encoder: Any) -> None:
    old = weight_of(encoder)
    encoder.model.language_model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(old.detach() + 1)


def replace_data(encoder: Any) -> None:
    weight_of(encoder).data = weight_of(encoder).data * 2


def change_attention(encoder: Any) -> None:
    encoder.set_attn_implementation("eager")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one weight": write_in_place,
    "weights loaded": load_state,
    "a weight replaced": replace_weight,
    "a weight's data replaced": replace_data,
    "bfloat16": lambda encoder: encoder.to(torch.bfloat16),
    "through bfloat16 and back": lambda encoder: encoder.to(torch.bfloat16).to(torch.float32),
    "the vision tower": lambda encoder: encoder.model.visual.to(torch.float64),
    "attention": change_attention,
    "training": lambda encoder: encoder.train(),
    "another device": lambda encoder: encoder.to("meta"),
    "fewer blocks": lambda encoder: encoder.model.language_model.layers.__delitem__(5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_the_encoder_show(name: str) -> None:
    encoder, *others = make_reader()
    before = reader_state(encoder, *others)
    assert reader_state(encoder, *others) == before
    CHANGES[name](encoder)
    assert reader_state(encoder, *others) != before


def test_autocast_shows() -> None:
    reader = make_reader()
    before = reader_state(*reader)
    with torch.autocast("cpu", torch.bfloat16):
        assert reader_state(*reader) != before
    assert reader_state(*reader) == before


def test_settings_of_processor_and_tokenizer_show() -> None:
    encoder, processor, tokenizer = make_reader()
    states = [reader_state(encoder, processor, tokenizer)]
    processor.image_mean = [0.4] * 3
    states.append(reader_state(encoder, processor, tokenizer))
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "painter")
    states.append(reader_state(encoder, processor, tokenizer))
    assert len(set(states)) == 3


def test_adapters_show() -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder, *others = make_reader()
    states = [reader_state(encoder, *others)]
    encoder.add_adapter(LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    states.append(reader_state(encoder, *others))
    encoder.disable_adapters()
    states.append(reader_state(encoder, *others))
    encoder.enable_adapters()
    layers = [module for module in encoder.modules() if isinstance(module, BaseTunerLayer)]
    assert reader_state(encoder, *others) == states[1]
    layers[0].scale_layer(0.5)
    states.append(reader_state(encoder, *others))
    layers[0].merge()
    states.append(reader_state(encoder, *others))
    assert len(set(states)) == 5


def test_moving_to_and_fro_does_not_show() -> None:
    # As model offload does it, in which a parameter stays the same object over other memory.
    encoder, *others = make_reader()
    before = weights_digest(encoder.model)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.clone()
    assert weights_digest(encoder.model) == before
    assert reader_state(encoder, *others)[3] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_moving_to_an_accelerator_and_back_does_not_show() -> None:
    encoder = tiny_vl_encoder()
    before = weights_digest(encoder.model)
    assert weights_digest(encoder.to("cuda").model) == before
    assert weights_digest(encoder.to("cpu").model) == before


def test_runs_do_not_show() -> None:
    from test_vl_forward import make_inputs
    from zimage_vl.vl_forward import vl_hidden_states

    reader = make_reader()
    before = reader_state(*reader)
    vl_hidden_states(reader[0], make_inputs(), [4])
    assert reader_state(*reader) == before
    hook = reader[0].model.register_forward_pre_hook(lambda *_: None)
    assert reader_state(*reader) == before  # hooks are the caller's affair
    hook.remove()


def test_quantised_weights_are_read_too() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    encoder = tiny_vl_encoder()
    before = weights_digest(encoder.model)
    torchao.quantize_(encoder.model.language_model, torchao.Int8WeightOnlyConfig())
    after = weights_digest(encoder.model)
    assert before != after == weights_digest(encoder.model)


def test_equal_objects_are_not_the_same() -> None:
    first, second = make_reader(), make_reader()
    assert reader_owners(*first) == reader_owners(*first)
    assert hash(reader_owners(*first)) == hash(reader_owners(*first))
    for place in range(3):
        mixed = [second[n] if n == place else first[n] for n in range(3)]
        assert reader_owners(*mixed) != reader_owners(*first)


def test_weights_made_for_inference_alone_can_be_read() -> None:
    with torch.inference_mode():
        encoder = tiny_vl_encoder()
    assert len(weights_digest(encoder.model)) == 64
