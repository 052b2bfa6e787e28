"""The module graphs of HF transformers, one file per family."""
