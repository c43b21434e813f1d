"""Boxes, masks, crops, augmentation and paste-back on plain tensors."""
