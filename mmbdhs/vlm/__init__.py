"""The door to any vision-language model of `transformers`."""
