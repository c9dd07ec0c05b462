"""Many continuations over shared prefixes, decoded together."""
