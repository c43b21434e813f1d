"""Whose weights are known, by name; apart from `layouts`, for a node lists them before anything is loaded."""

INLAY, OBJECT_STITCH, PAINT, ANYDOOR = "Inlay", "ObjectStitch", "Paint-by-Example", "AnyDoor"
OPTIMIZER = "Visually Guided (emb_opt.pt)"
AUTO = "by the file"
CHOICES = (AUTO, OBJECT_STITCH, PAINT)
