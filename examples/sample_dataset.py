"""Make a rejected response for every example of a data set, and a page to look at the pairs.

    python examples/sample_dataset.py llava-hf/llava-v1.6-vicuna-7b-hf llava_instruct_150k.json pairs

The same command continues a run that was stopped.
"""

import sys

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs import BDHSConfig, DatasetConfig, sample_dataset
from mmbdhs.data import open_records
from mmbdhs.pairs import write_report

name, data, output = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(name)

records = open_records(data, turns="last")  # any layout of docs/data.md
config = BDHSConfig(mask_threshold=0.99, similarity_threshold=0.97, seed=0)
settings = DatasetConfig(drop_garbled=True, max_length_ratio=3.0)
result = sample_dataset(model, processor, records, output, config, settings=settings)

print(f"{result.figures.pairs} pairs of {result.figures.examples} examples: {write_report(result.folder)}")
