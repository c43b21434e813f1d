"""Finetune a subject: spec, data, LoRA, trainer, memory, previews, store."""
