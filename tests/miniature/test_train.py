"""The training script from end to end, far too short to learn anything."""

from dataclasses import replace

import miniature_train as train
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


def test_trains_saves_and_evaluates(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--steps", "0.004", "--images", "3"])
    train.main()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("tower", "align", "clean", "biased", "POPE random", "fluent blind"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.num_parameters() < 1_000_000 and len(AutoProcessor.from_pretrained(tmp_path).tokenizer) < 1000


def test_a_seed_repeats_its_weights():
    steps = {name: replace(stage, steps=2) for name, stage in train.STAGES.items()}
    first, again, other = (train.train(seed, steps, 32)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_rows_hide_only_image_tokens_from_everyone():
    """Hidden image tokens change nothing whatever they hold; visible ones do."""
    processor = train.build_processor()
    model = train.build_model(processor)
    batch = train.Corpus(processor, "train", 2, train.CLEAN, 0).batch(torch.tensor([0, 1]))
    images = torch.randn(2, 144, 64, generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(144).expand(2, -1) % 3 > 0
    for changed, expected in ((hidden, True), (~hidden, False)):
        other = images.masked_fill(changed[..., None], 5.0)
        losses = [train.packed_loss(model, batch, found, hidden).item() for found in (images, other)]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-6)) is expected
