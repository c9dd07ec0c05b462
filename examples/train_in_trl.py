"""Align a model with stored pairs in TRL. Only one import differs from a script of TRL.

python examples/train_in_trl.py llava-hf/llava-v1.6-vicuna-7b-hf pairs aligned
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig

from mmbdhs.trl import PackedDPOTrainer  # in place of: from trl import DPOTrainer

name, pairs, output = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
data = load_dataset(pairs, split="train").train_test_split(test_size=0.05, seed=0)
settings = DPOConfig(
    output,
    max_length=None,  # image prompts are not cut
    bf16=torch.cuda.is_available(),
    learning_rate=2e-5,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=8,
    num_train_epochs=1,
    logging_steps=10,
    eval_strategy="epoch",
)
trainer = PackedDPOTrainer(
    model,
    args=settings,
    train_dataset=data["train"],
    eval_dataset=data["test"],
    processing_class=AutoProcessor.from_pretrained(name),
    peft_config=LoraConfig(r=128, lora_alpha=256, target_modules=r".*language_model.*\.(q|k|v|o)_proj"),
)
trainer.train()
trainer.save_model(output)
