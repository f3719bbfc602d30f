"""Medical image classification for lmms-eval: evaluate, probe and attribute medical multimodal LLMs."""

__version__ = "0.1.0"
