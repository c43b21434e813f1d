"""Encode images of an object as context for a diffusion model: encoders, adapters, published weights."""

# Layouts of published adapters; a node lists them, and the modules here would delay the host's start.
INLAY_LAYOUT, OBJECT_STITCH, PAINT, ANYDOOR = "Inlay", "ObjectStitch", "Paint-by-Example", "AnyDoor"
OPTIMIZER = "Visually Guided (emb_opt.pt)"
AUTO_LAYOUT = "by the file"
CHOICES = (AUTO_LAYOUT, OBJECT_STITCH, PAINT)
