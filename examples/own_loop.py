"""A training loop of your own: log-probabilities and a loss are two calls.

python examples/own_loop.py llava-hf/llava-v1.6-vicuna-7b-hf pairs aligned
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs.data import open_records
from mmbdhs.logprobs import encode_record, reference_logps, response_logps
from mmbdhs.losses import dpo_loss

name, pairs, output = sys.argv[1:]
processor = AutoProcessor.from_pretrained(name)
base = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
adapters = LoraConfig(r=128, lora_alpha=256, target_modules=r".*language_model.*\.(q|k|v|o)_proj")
model = get_peft_model(base, adapters)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-5)

records = open_records(pairs)
for begin in range(0, len(records), 4):
    prompts, ids = zip(*(encode_record(model, processor, record) for record in records[begin : begin + 4]))
    policy = response_logps(model, prompts, ids).sums  # [prompts, 2]: chosen, rejected
    reference = reference_logps(model, prompts, ids).sums  # the adapters are off
    result = dpo_loss(*policy.T, *reference.T, beta=0.1)
    result.losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    margin = (result.chosen_rewards - result.rejected_rewards).mean()
    print(f"step {begin // 4 + 1}: loss {result.losses.mean():.4f}, margin {margin:.4f}")
model.save_pretrained(output)
