"""Answer POPE's questions greedily and score the answers, with 95% intervals.

python examples/evaluate.py aligned coco/val2014 coco_pope_random.json coco_pope_adversarial.json
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from mmbdhs import SamplingConfig, sample_responses
from mmbdhs.data import read_jsonl
from mmbdhs.evaluation import pope

name, images, *files = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(name)

questions = [row | {"split": Path(file).stem} for file in files for row in read_jsonl(file)]
answers = sample_responses(
    model,
    processor,
    [str(Path(images) / row["image"]) for row in questions],
    [f"{row['text']}\nAnswer the question using a single word or phrase." for row in questions],
    SamplingConfig(temperature=0, max_new_tokens=16),
    progress=True,
)
texts = [found[0].text for found in answers]
columns = ([row[column] for row in questions] for column in ("label", "image", "split"))
print(pope(texts, *columns))
