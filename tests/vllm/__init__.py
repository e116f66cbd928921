"""Tests with a real vLLM, in an environment of its own: scripts/test-vllm."""
