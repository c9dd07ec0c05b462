"""One VLM for each model: found again through every wrapper, freed with the model, never copied."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator

import pytest
import torch
from helpers import tiny_models
from helpers.plain import picture
from torch import nn

from mmbdhs import BDHSConfig, bdhs_sample
from mmbdhs.vlm import VLM


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(tiny_models.llava()[0])


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sample(model: nn.Module) -> None:
    config = BDHSConfig(max_sentence_tokens=3, max_iterations=1)
    similarity = lambda first, second: [0.0] * len(first)  # noqa: E731
    bdhs_sample(model, tiny_models.llava()[1], [picture(0)], ["Describe it."], ["A dog."], config, similarity)


def test_a_model_has_one_vlm_through_its_wrappers(model: nn.Module) -> None:
    vlm = VLM.of(model)
    assert vlm.model is model and VLM.of(model) is vlm
    assert VLM.of(nn.DataParallel(model)) is vlm and VLM.of(torch.compile(model)) is vlm
    assert vlm.decoder is model.model.language_model and vlm.image_token_id == model.config.image_token_id


def test_what_a_check_found_is_kept_until_it_is_forgotten(model: nn.Module) -> None:
    sample(model)
    vlm = VLM.of(model)
    found = vlm.exact_tokens, vlm.decoded_tokens
    assert min(found) > 0
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    sample(model)
    assert len(calls) == 1 and (vlm.exact_tokens, vlm.decoded_tokens) == found  # the image is encoded, nothing else
    vlm.forget_checks()
    sample(model)
    handle.remove()
    assert len(calls) > 2 and vlm.exact_tokens == found[0]


@pytest.mark.usefixtures("without_collector")
def test_model_and_vlm_are_freed_together_without_the_collector(model: nn.Module) -> None:
    local = copy.deepcopy(model)
    sample(local)
    vlm, decoder = weakref.ref(VLM.of(local)), weakref.ref(VLM.of(local).decoder)
    del local
    assert vlm() is None and decoder() is None


def test_copies_and_pickles_begin_without_a_vlm(model: nn.Module) -> None:
    sample(model)
    assert pickle.loads(pickle.dumps(VLM.of(model))) is None
    for other in (copy.deepcopy(model), copy.copy(model)):
        vlm = VLM.of(other)
        assert vlm.model is other and vlm is not VLM.of(model) and vlm.exact_tokens == -1


def test_a_vlm_outlives_its_model_with_a_clear_error() -> None:
    vlm = VLM.of(copy.deepcopy(tiny_models.llava()[0]))
    gc.collect()
    with pytest.raises(ReferenceError, match="model: has been deleted while it was in use"):
        _ = vlm.model
