"""Bias-driven hallucination sampling for vision-language models."""
