"""The families of vision-language models that the tests hold to exactness, or see refused."""

from __future__ import annotations

from helpers import tiny_models
from helpers.model_zoo import ZOO
from helpers.plain import picture

# What is particular about a decoder, and the families that show it: name in the zoo -> title.
GROUPS: dict[str, dict[str, str]] = {
    "causal attention": {
        "llava": "LLaVA-1.5",
        "llava_next": "LLaVA-NeXT",
        "llava_onevision": "LLaVA-OneVision",
        "vipllava": "VipLLaVA",
        "idefics2": "Idefics2",
        "idefics3": "Idefics3",
        "smolvlm": "SmolVLM",
        "mistral3": "Mistral 3",
        "pixtral": "Pixtral",
        "internvl": "InternVL",
        "deepseek_vl": "DeepSeek-VL",
        "ovis2": "Ovis2",
        "janus": "Janus",
        "emu3": "Emu3",
        "fuyu": "Fuyu",
    },
    "experts": {"aria": "Aria"},
    "M-RoPE (three rows of positions)": {
        "qwen2_vl": "Qwen2-VL",
        "qwen2_5_vl": "Qwen2.5-VL",
        "glm4v": "GLM-4V",
        "glm4v_moe": "GLM-4.5V (experts)",
        "ernie4_5_vl_moe": "ERNIE 4.5 VL (experts by modality)",
    },
    "image features added inside layers": {
        "qwen3_vl": "Qwen3-VL",
        "qwen3_vl_moe": "Qwen3-VL (experts)",
        "granite4_vision": "Granite 4 Vision",
    },
    "sliding windows, past their length": {
        "llava_mistral_sliding": "LLaVA on Mistral",
        "aya_vision": "Aya Vision",
        "cohere2_vision": "Command A Vision",
    },
    "windows, and images that see themselves both ways": {"gemma3": "Gemma 3", "gemma4_bidirectional": "Gemma 4"},
    "several embeddings of a token, shared keys": {"gemma3n": "Gemma 3n", "gemma4": "Gemma 4 (E sizes)"},
    "a prefix that sees itself both ways": {"paligemma": "PaliGemma", "paligemma2": "PaliGemma 2 (windows, soft-cap)"},
    "chunks, past their length": {"llama4": "Llama 4"},
    "cross-attention to the image": {"mllama": "Llama 3.2 Vision"},
    "recurrent or convolutional layers": {"lfm2_vl": "LFM2-VL", "qwen3_5": "Qwen3.5"},
    "compressed keys": {"kimi_k25": "Kimi K2.5"},
    "an encoder next to the decoder": {"florence2": "Florence-2"},
    "images merged inside the decoder": {"chameleon": "Chameleon"},
    "no forward without an image": {"blip2": "BLIP-2"},
}
REFUSED = {
    "mllama": "its decoder MllamaTextModel received .*cross_attention_states",
    "lfm2_vl": r"\['conv'\] in Lfm2Model",
    "qwen3_5": r"\['linear_attention'\] in Qwen3_5TextModel",
    "kimi_k25": "attend to the keys and values that were handed to the cache, as they are",
    "florence2": "an encoder-decoder",
    "chameleon": "its decoder ChameleonModel received .*pixel_values",
    "blip2": "must run on text alone",
}
CONDITIONS = {"llama4": "to 8,192 tokens, from which on it weighs attention by a count of its own"}
BUILDERS = ZOO | {name: getattr(tiny_models, name) for name in ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")}
EXACT = [name for group in GROUPS.values() for name in group if name not in REFUSED]
PROMPTS = ["Describe the image.", "Is there a cat?"]
REFERENCES = [
    "The image shows a red car, e.g. a van. A dog sits next to it. It costs 3.5 dollars!",
    "No, there is a cat on the table. The tree is green.",
]
IMAGES = [[picture(0)], [picture(3), picture(4, 33, 90)]]  # two of unlike sizes for the second
LIMIT = 6
