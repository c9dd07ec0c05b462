"""Models inside what people wrap them in sample as they do without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from helpers.plain import assert_replays, picture
from torch import Tensor, distributed, nn

from mmbdhs import BDHSConfig, BDHSSample, UnsupportedModelError, bdhs_sample
from mmbdhs.logprobs.packed import response_logps
from mmbdhs.logprobs.preferences import encode_responses
from mmbdhs.vlm.text_decoder import find_text_decoder
from mmbdhs.vlm.unwrap import unwrap

ARGUMENTS = [picture(0)], ["Describe it."], ["A red car stands here. A dog sits next to it."]
CONFIG = BDHSConfig(mask_threshold=0.9, temperature=0, max_sentence_tokens=6, max_iterations=1)


def sample(model: Any, processor: Any) -> list[BDHSSample]:
    return bdhs_sample(model, processor, *ARGUMENTS, CONFIG, lambda a, b: [0.0] * len(a))


@pytest.fixture
def fresh() -> tuple[Any, Any]:
    model, processor = tiny_models.qwen2_5_vl()
    return copy.deepcopy(model), processor


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_layers(model: Any) -> Any:
    for layer in find_text_decoder(model).layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        compiled_in_place,
        compiled_layers,
        nn.DataParallel,
        lambda model: nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["compiled", "compiled in place", "compiled layers", "DataParallel", "DDP"],
)
@pytest.mark.usefixtures("process_group")
def test_wrapped_models_sample_the_same(wrap: Callable[[Any], Any], fresh: tuple[Any, Any]) -> None:
    model, processor = fresh
    expected = sample(model, processor)
    assert sample(wrap(model), processor) == expected


@pytest.mark.usefixtures("process_group")
def test_sharded_models_are_refused(fresh: tuple[Any, Any]) -> None:
    model, processor = fresh
    with pytest.raises(UnsupportedModelError, match="sharded by FSDP"):
        sample(distributed.fsdp.fully_shard(model), processor)


def test_adapters_are_part_of_the_model(fresh: tuple[Any, Any]) -> None:
    peft = pytest.importorskip("peft")
    model, processor = fresh
    before = sample(model, processor)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    found = sample(adapted, processor)
    assert found != before
    with adapted.disable_adapter():
        assert sample(adapted, processor) == before
    assert_replays(unwrap(adapted), processor, ARGUMENTS[0], ARGUMENTS[1][0], found[0], 6)


def test_prompt_learning_is_refused(fresh: tuple[Any, Any]) -> None:
    peft = pytest.importorskip("peft")
    model, processor = fresh
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=128, num_layers=2, num_attention_heads=4
    )
    with pytest.raises(UnsupportedModelError, match="prompt learning"):
        sample(peft.get_peft_model(model, config), processor)


class Int8Linear(nn.Module):
    """Weights in 8 bits with a scale for each row, as quantisers wrap linear layers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale.detach())
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_quantised_models_sample_as_their_weights_say(fresh: tuple[Any, Any]) -> None:
    model, processor = fresh
    for layer in find_text_decoder(model).modules():
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.Linear):
                setattr(layer, name, Int8Linear(child))
    model.lm_head = Int8Linear(model.lm_head)
    found = sample(model, processor)
    dense = copy.deepcopy(tiny_models.qwen2_5_vl()[0])
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Int8Linear):
                dense.get_submodule(name).weight.copy_(module.weight * module.scale)
    assert found == sample(dense, processor)


def test_offloaded_models_sample_the_same(fresh: tuple[Any, Any], tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, processor = fresh
    expected = sample(model, processor)
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert next(find_text_decoder(model).parameters()).is_meta
    assert sample(model, processor) == expected
    inputs, ids = encode_responses(model, processor, *ARGUMENTS[0], *ARGUMENTS[1], ["A dog."])
    found = response_logps(model, [inputs], [ids]).sums
    torch.testing.assert_close(found, response_logps(tiny_models.qwen2_5_vl()[0], [inputs], [ids]).sums)


def test_models_come_out_of_all_their_wrappers(fresh: tuple[Any, Any]) -> None:
    model, _ = fresh
    assert unwrap(nn.DataParallel(torch.compile(model))) is model
