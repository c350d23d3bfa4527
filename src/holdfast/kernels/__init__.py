"""The language-model head: hidden states to per-token statistics without an [N, V] tensor."""
