"""Name the known adapter layouts; light to import, because a node lists them."""

INLAY_LAYOUT, OBJECT_STITCH, PAINT, ANYDOOR = "Inlay", "ObjectStitch", "Paint-by-Example", "AnyDoor"
OPTIMIZER = "Visually Guided (emb_opt.pt)"
AUTO_LAYOUT = "by the file"
CHOICES = (AUTO_LAYOUT, OBJECT_STITCH, PAINT)
