"""Whose weights are known, by name; apart from `layouts`, for a node lists them before anything is loaded."""

INLAY_LAYOUT, OBJECT_STITCH, PAINT, ANYDOOR = "Inlay", "ObjectStitch", "Paint-by-Example", "AnyDoor"
OPTIMIZER = "Visually Guided (emb_opt.pt)"
AUTO_LAYOUT = "by the file"
CHOICES = (AUTO_LAYOUT, OBJECT_STITCH, PAINT)
